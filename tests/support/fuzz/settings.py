"""Settings files and --set: bad YAML and JSON in every place that reads them, bad paths, bad numbers."""

from __future__ import annotations

from fuzz.makers import BAD_JSON, BAD_YAML, DEEP, DIGITS, LONG, fifo, folder, link, literal, written
from fuzz.runner import Case

CURATE = ("--root", "{here}/runs", "--samples", "2", "--pool", "{pool}")
TRAIN = ("--shards", "{train}", "--out", "{here}/run")

_yaml = [
    Case(f"config yaml {name}", "instructar curate", ("--root", "{here}/runs", "--config", "{here}/bad.yaml"),
         told, written("bad.yaml", content))
    for name, (content, told) in BAD_YAML.items()
]  # fmt: skip

_THRESHOLDS: dict[str, tuple[str | bytes, str]] = {
    "a list": ("thresholds: [1]\n", "expected one key"),
    "text": ("thresholds: {identity_low: high}\n", "expected one key"),
    "truth": ("thresholds: {identity_low: true}\n", "expected one key"),
    "more keys": ("thresholds: {identity_low: 0.5}\nother: 1\n", "expected one key"),
    "nothing": ("", "expected one key"),
    "unknown reason": ("thresholds: {identity_lo: 0.5}\n", "did you mean identity_low"),
    "out of range": ("thresholds: {identity_low: 7}\n", "outside"),
    "huge": ("thresholds: {identity_low: 1.0e+400}\n", "identity_low"),
} | {
    name: BAD_YAML[name] for name in ("deep list", "alias bomb", "alias circle", "python tag", "infinity", "not UTF-8")
}
_THRESHOLDS["infinity"] = ("thresholds: {identity_low: .inf}\n", "identity_low")
_thresholds = [
    Case(f"thresholds {name}", "instructar curate", (*CURATE, "--set", "decide.thresholds_file={here}/t.yaml"),
         told, written("t.yaml", content))
    for name, (content, told) in _THRESHOLDS.items()
]  # fmt: skip

_PLACES = {
    "missing": (lambda here: None, "cannot be read"),
    "folder": (folder("file"), "a folder"),
    "pipe": (fifo("file"), "a pipe"),
    "device": (link("file", "/dev/zero"), "a pipe, socket or device"),
    "null device": (link("file", "/dev/null"), "a pipe, socket or device"),
    "circular link": (link("file", "file"), "cannot be read"),
}
_READERS = {
    "config": ("instructar curate", ("--root", "{here}/runs", "--config", "{here}/file")),
    "report config": ("instructar report", ("--root", "{here}/runs", "--config", "{here}/file")),
    "models config": ("instructar models check", ("--config", "{here}/file")),
    "thresholds": ("instructar curate", (*CURATE, "--set", "decide.thresholds_file={here}/file")),
    "train config": ("train", ("--config", "{here}/file")),
    "encode config": ("encode", ("--config", "{here}/file")),
    "eval config": ("eval", ("--shards", "{shards}", "--out", "{here}/o", "--config", "{here}/file")),
    "list": ("sample", ("--model", "{model}", "--out", "{here}/o", "--list", "{here}/file")),
}
_places = [
    Case(
        f"{reader} is {place}",
        command,
        arguments,
        f"{{here}}/file: {told}|{{here}}/file: is {told}|{{here}}/file: cannot be read",
        make,
    )
    for reader, (command, arguments) in _READERS.items()
    for place, (make, told) in _PLACES.items()
]
_places += [
    Case(f"{reader} over-long", command, [a.replace("{here}/file", "{here}/" + "x" * 5000) for a in arguments],
         "File name too long")
    for reader, (command, arguments) in _READERS.items()
]  # fmt: skip
_places += [
    Case(f"{reader} NUL in it", command, [a.replace("{here}/file", "{here}/a\udcffb") for a in arguments], "not UTF-8")
    for reader, (command, arguments) in _READERS.items()
]

_json = [
    Case(f"{command} json {name}", command, (*more, "--config", "{here}/bad.json"), told, written("bad.json", content))
    for command, more in (("train", ()), ("encode", ()), ("eval", ("--shards", "{shards}", "--out", "{here}/o")))
    for name, (content, told) in BAD_JSON.items()
    if command == "train" or name in ("deep", "many digits", "cut short", "not UTF-8")
]
_list = [
    Case(f"list json {name}", "sample", ("--model", "{model}", "--out", "{here}/o", "--list", "{here}/bad.json"),
         "{here}/bad.json", written("bad.json", content))
    for name, (content, _) in BAD_JSON.items()
]  # fmt: skip
_ENTRY = '[{"references": ["%s"], "background": "%s", "prompt": "%s", "id": %s, "seed": %s}]'
_list += [
    Case(f"list entry {name}", "sample", ("--model", "{model}", "--out", "{here}/o", "--list", "{here}/l.json"),
         told, written("l.json", _ENTRY % entry))
    for name, entry, told in (
        ("missing picture", ("none.png", "none.png", "p", '"a"', 0), "none.png"),
        ("NUL in a path", ("a\\u0000b", "none.png", "p", '"a"', 0), "l.json|a"),
        ("half a surrogate", ("a\\ud800b", "none.png", "p", '"a"', 0), "l.json|a"),
        ("traversal id", ("a.png", "b.png", "p", '"../up"', 0), "id"),
        ("over-long id", ("/dev/null", "/dev/null", "p", '"' + LONG + '"', 0), "l.json|/dev/null"),
        ("negative seed", ("a.png", "b.png", "p", '"a"', -1), "seed"),
        ("large seed", ("a.png", "b.png", "p", '"a"', 2**63), "seed"),
        ("device", ("/dev/zero", "b.png", "p", '"a"', 0), "/dev/zero"),
    )
]  # fmt: skip

_SET = {
    "no value": ("samples", "expected key=value"),
    "no key": ("=3", "expected key=value"),
    "deep": (f"samples={DEEP}", "samples"),
    "deep key": (".".join("a" * 3000) + "=1", "a"),
    "date": ("samples=2024-01-01", "samples"),
    "tag": ("samples=!!python/object/apply:os.system [id]", "samples"),
    "digits": (f"samples={DIGITS}", "samples"),
    "infinity": ("synthesis.fault_share=.inf", "synthesis.fault_share"),
    "not a number": ("planning.jitter=.nan", "planning.jitter"),
    "circle": ("planning.relations=&a [*a]", "planning"),
    "unknown": ("decide.treshold.identity_low=0.5", "did you mean thresholds"),
    "unknown reason": ("decide.thresholds.identity_lo=0.5", "did you mean identity_low"),
    "unknown relation": ("planning.relations=[hugg]", "did you mean hug"),
    "unknown preset": ("references.pool=[{preset: relationbenc}]", "did you mean relationbench"),
    "preset a list": ("references.pool=[{preset: [1]}]", "preset"),
    "empty pools": ("references.pool=[]", "references.pool"),
    "seed below": ("seed=-1", "seed"),
    "seed above": (f"seed={2**63}", "seed"),
    "part size": ("part_size=0", "part_size"),
    "workers": ("workers=1000000000", "workers"),
    "too many parts": ("part_size=1", "raise part_size"),
    "size": ("synthesis.size=1000000", "synthesis.size"),
    "shard size": ("shards.samples_per_shard=0", "shards.samples_per_shard"),
    "threshold infinite": ("decide.thresholds.identity_low=.inf", "identity_low"),
    "escape": ('name="a\\e[31mb"', "name"),
    "password": ("semantics={backend: openai, base_url: 'http://me:hunter2@host'}", "semantics.base_url"),
    "password with signs": ("semantics={backend: openai, base_url: 'http://me:hunter2/@x@host'}", "semantics.base_url"),
    "key in its name's place": ("semantics={backend: openai, api_key_env: 'hunter2-key'}", "semantics.api_key_env"),
    "key in a query": ("root='foo://host/?token=hunter2'", "root"),
    "resampler": ("synthesis={backend: dreamrelation, resampler: {width: 1000000000}}", "synthesis.resampler.width"),
}
_set = [
    Case(f"set {name}", "instructar curate", (
        "--root", "{here}/runs", *(("--samples", "10000000") if name == "too many parts" else ()), "--set",
        literal(text)), told, hidden="hunter2")
    for name, (text, told) in _SET.items()
]  # fmt: skip

CASES = [*_yaml, *_thresholds, *_places, *_json, *_list, *_set]
