"""``instructar select``, and the commands that open a run to look at it and end before they serve a page."""

from __future__ import annotations

import pyarrow as pa

from fuzz.exchange.exports import dataset, instead, manifest
from fuzz.makers import Make, fifo, folder, link, written
from fuzz.runner import Case

SELECT = ("{here}/dataset", "--out", "{here}/out", "--where")
_good = dataset(lambda own: None)

_CONDITIONS = {
    "of nothing": ("", "condition"), "a word": ("similarity_min", "condition"),
    "no value": ("similarity_min <", "lacks a value"), "no column": ("< 3", "condition"),
    "unknown column": ("similarity_mi < 3", "did you mean similarity_min"),
    "another operator": ("index ~ 3", "condition"),
    "a word for a number": ("similarity_min < x", "not a number"), "NaN": ("similarity_min < nan", "not a number"),
    "neither yes nor no": ("mirror_0 = perhaps", "neither yes nor no"),
    "a value too many": ("index is missing 3", "condition"),
    "an escape": ("a\x1b[31mb < 3", "condition"), "a newline": ("a\nb < 3", "condition"),
    "over-long": ("index = " + "9" * 5000, "condition"),
    "code": ("__import__('os').system('touch executed')", "condition"),
    "met by none": ("index > 99", "no sample was chosen"), "infinite": ("index > 1e999", "no sample was chosen"),
    "texts that end": ("prompt contains \x1b[31m", "no sample was chosen"),
    "many digits": ("index = " + "9" * 400, "no sample was chosen"),
}  # fmt: skip
_conditions = [
    Case(f"select where {name}", "instructar select", (*SELECT, text), told, _good, clean=True)
    for name, (text, told) in _CONDITIONS.items()
]


def _large_seeds(table: pa.Table) -> pa.Table:
    seeds = pa.array([2**63 - 1 - k for k in range(len(table))], pa.int64())
    return table.set_column(table.schema.get_field_index("seed"), table.schema.field("seed"), seeds)


def _and(name: str, values: pa.Array) -> Make:
    return manifest(lambda table: table.append_column(name, pa.chunked_array([values] * len(table))))


_FINE: dict[str, tuple[str, Make]] = {
    "a fraction": ("seed > 0.5", manifest(_large_seeds)),
    "several": ("seed in 1, 0.5, 9223372036854775807", manifest(_large_seeds)),
    "other digits": ("index < \u0663", _good),
    "in a list": ("box_0 < 0.5", _good),
    "part of a number": ("index contains 0", _good),
    "part of yes": ("mirror_0 contains fals", _good),
    "large counts": ("more >= 1", _and("more", pa.array([2**64 - 1], pa.uint64()))),
}
_fine = [
    Case(f"select where {name}", "instructar select", (*SELECT, text), "samples", make, codes=(0,))
    for name, (text, make) in _FINE.items()
]
_fine.append(
    Case("select where a day", "instructar select", (*SELECT, "day < 3"), "day",
         _and("day", pa.array([0], pa.date32())), clean=True)
)  # fmt: skip

_PLAIN = SELECT[:3]
_wrong = [
    Case("select out there", "instructar select", ("{here}/dataset", "--out", "{here}/dataset"), "is there already",
         _good, clean=True),
    Case("select out below a device", "instructar select", ("{here}/dataset", "--out", "/dev/null/x"), "/dev/null",
         _good, clean=True),
    Case("select shards of a dataset", "instructar select", (*_PLAIN, "--shards"), "save a manifest", _good,
         clean=True),
    *(Case(f"select manifest {name}", "instructar select", _PLAIN, "manifest.parquet",
           instead("manifest.parquet", thing), clean=True)
      for name, thing in {"pipe": fifo, "folder": folder, "text": lambda file: written(file, "x")}.items()),
]  # fmt: skip

_RUNS: dict[str, tuple[str, Make, str]] = {
    "missing": ("{here}/run", lambda here: None, "{here}/run"),
    "a file": ("{here}/run", written("run", "x"), "{here}/run"),
    "settings a pipe": ("{here}/run", fifo("run/settings.json"), "run"),
    "settings a device": ("{here}/run", link("run/settings.json", "/dev/zero"), "run"),
    "settings a folder": ("{here}/run", folder("run/settings.json"), "run"),
    "settings of nonsense": ("{here}/run", written("run/settings.json", '{"samples": -1}'), "samples"),
    "settings a list": ("{here}/run", written("run/settings.json", "[1]"), "no run was curated there"),
    "newline": ("{here}/a\nb", lambda here: None, "name|a b"),
    "escape": ("{here}/a\x1b[31mb", lambda here: None, "name|a"),
    "up": ("{here}/..", lambda here: None, "name|.."),
    "of nothing": ("", lambda here: None, "name"),
    "over-long": ("{here}/" + "x" * 5000, lambda here: None, "name|File name too long"),
}
_runs = [
    Case(f"{command} of run {name}", f"instructar {command}", (run, *more), told, make, clean=True)
    for command, more in {
        "select": ("--out", "{here}/out"), "explore": ("--port", "0"), "review": ("--port", "0"), "status": (),
        "review --apply": (),
    }.items()
    for name, (run, make, told) in _RUNS.items()
]  # fmt: skip
_pages = [
    Case(f"{command} {option} {value}", f"instructar {command}", ("{here}/dataset", option, value), told, _good,
         clean=True)
    for command in ("explore", "review")
    for option, value, told in (
        ("--port", "-1", "--port"), ("--port", "99999", "--port"), ("--port", "x", "--port"),
        ("--prt", "1", "--prt"),
    )
]  # fmt: skip
_pages += [
    Case(f"explore host {name}", "instructar explore", ("{here}/dataset", "--port", "0", "--host", host), "--host",
         _good, clean=True)
    for name, host in {"unknown": "no.such.host.invalid", "of nothing": "", "over-long": "x" * 300,
                       "escape": "a\x1b[31mb", "of another machine": "203.0.113.1"}.items()
]  # fmt: skip
_pages.append(
    Case("explore against nothing", "instructar explore", ("{here}/dataset", "--against", "{here}/none"),
         "{here}/none", _good, clean=True)
)  # fmt: skip

CASES = [*_conditions, *_fine, *_wrong, *_runs, *_pages]
