"""Datasets that ``instructar export`` reads, whole or not, and its options."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.exchange.pairs import broken_text
from fuzz.good import CARD
from fuzz.makers import DEEP, NO_OUT, Make, fifo, folder, link, written
from fuzz.runner import Case
from fuzz.shards import BAD, members, tar

HUB = ("{here}/dataset", "--to", "hub", "--out", "{here}/out")
FOLDERS = ("{here}/dataset", "--to", "folders", "--out", "{here}/out")
TRAIN = "train-00000.tar"


def dataset(change: Callable[[Path], object]) -> Make:
    """A copy of the good dataset with something changed."""

    def make(here: Path) -> None:
        shutil.copytree(here.parents[1] / "good" / "dataset", here / "dataset")
        change(here / "dataset")

    return make


def instead(file: str, make: Callable[[str], Make]) -> Make:
    return dataset(lambda own: ((own / file).unlink(), make(file)(own)))


def facts(change: Callable[[dict], object]) -> Make:
    """The content of run.json changed in place."""

    def changed(own: Path) -> None:
        stated = json.loads((own / "run.json").read_text())
        change(stated)
        (own / "run.json").write_text(json.dumps(stated))

    return dataset(changed)


def shard(make: Make) -> Make:
    """Another shard in place of the first, of which run.json has the digest."""

    def changed(own: Path) -> None:
        make(own)
        if (own / BAD).exists():
            (own / BAD).rename(own / TRAIN)
        stated = json.loads((own / "run.json").read_text())
        stated["shards"][TRAIN] = hashlib.sha256((own / TRAIN).read_bytes()).hexdigest()
        (own / "run.json").write_text(json.dumps(stated))

    return dataset(changed)


def also(name: str, there: str = "") -> Make:
    """run.json names one more shard, with the digest of the file that is ``there`` in the dataset's folder."""

    def changed(own: Path) -> None:
        stated = json.loads((own / "run.json").read_text())
        stated["shards"][name] = hashlib.sha256((own / there).read_bytes()).hexdigest() if there else "x"
        (own / "run.json").write_text(json.dumps(stated))

    return dataset(changed)


def manifest(change: Callable[[pa.Table], pa.Table]) -> Make:
    return dataset(
        lambda own: pq.write_table(change(pq.read_table(own / "manifest.parquet")), own / "manifest.parquet")
    )


def _broken_prompts(table: pa.Table) -> pa.Table:
    bad = pa.chunked_array([broken_text()] * len(table))
    return table.set_column(table.schema.get_field_index("prompt"), table.schema.field("prompt"), bad)


def _odd_meaning(table: pa.Table) -> pa.Table:
    field = table.schema.field("prompt").with_metadata({b"meaning": b"\xff"})
    return table.cast(table.schema.set(table.schema.get_field_index("prompt"), field))


def card(text: str | bytes) -> Make:
    return dataset(lambda own: written("README.md", text)(own))


_THINGS: dict[str, Callable[[str], Make]] = {
    "missing": lambda file: lambda here: None,
    "empty": lambda file: written(file, b""),
    "text": lambda file: written(file, "no such file"),
    "pipe": fifo,
    "device": lambda file: link(file, "/dev/zero"),
    "folder": folder,
    "link to itself": lambda file: link(file, file),
}
_files = [
    Case(f"export {file} {name} to {to}", "instructar export", arguments,
         "no dataset is there" if (file, name) == ("run.json", "missing") else file, instead(file, thing), clean=True)
    for to, arguments, files in (
        ("hub", HUB, ("run.json", "manifest.parquet", "README.md", TRAIN)), ("folders", FOLDERS, ("run.json", TRAIN)),
    )
    for file in files
    for name, thing in _THINGS.items()
    if (file, name) != ("run.json", "link to itself")  # not there, as any link to nothing
]  # fmt: skip
_WRONG: dict[str, tuple[Make, str]] = {
    "run deep": (dataset(lambda own: written("run.json", DEEP)(own)), "run.json"),
    "run not UTF-8": (dataset(lambda own: written("run.json", b'{"a": "\xff')(own)), "run.json"),
    "run a list": (dataset(lambda own: written("run.json", "[]")(own)), "run.json"),
    "run of NaN": (dataset(lambda own: written("run.json", '{"a": NaN}')(own)), "run.json"),
    "no version": (facts(lambda stated: stated.pop("version")), "gave no versions"),
    "version a number": (facts(lambda stated: stated.update(version=1)), "gave no versions"),
    "shards a list": (facts(lambda stated: stated.update(shards=[TRAIN])), "gave no versions"),
    "no shards": (facts(lambda stated: stated.update(shards={})), "no sample was kept"),
    "digests numbers": (facts(lambda stated: stated["shards"].update({TRAIN: 3})), TRAIN),
    "shard absolute": (also("/etc/hostname"), "/etc/hostname"),
    "shard the card": (also("README.md", "README.md"), "README.md"),
    "shard of an escape": (also("train-\x1b[31m.tar"), "train-"),
    "shard of no split": (facts(lambda stated: stated.update(shards={"x.tar": "x"})), "x.tar"),
    "shard of others": (shard(tar(("a", members()))), TRAIN),
    "shard of one reference": (
        shard(tar(("a", members(reference_1__png=None, reference_1__rgba__png=None)))), TRAIN),
    "shard cut": (shard(lambda own: (own / TRAIN).write_bytes((own / TRAIN).read_bytes()[:3000]) and None), TRAIN),
    "manifest cut": (
        dataset(lambda own: (own / "manifest.parquet").write_bytes((own / "manifest.parquet").read_bytes()[:-30])),
        "manifest.parquet"),
    "manifest without ids": (manifest(lambda table: table.drop_columns(["sample_id"])), "manifest.parquet"),
    "manifest not UTF-8": (manifest(_broken_prompts), "manifest.parquet"),
    "card of nothing": (card("# A dataset\n"), "README.md"),
    "card a list": (card("---\n- a\n---\ntext\n"), "README.md"),
    "card deep": (card(f"---\n{DEEP}\n---\ntext\n"), "README.md"),
    "card of a tag": (card("---\na: !!python/object/apply:os.system ['touch executed']\n---\nx\n"), "README.md"),
    "card of a missing one": (card(f"{CARD}[one](cards/0.md)\n"), "cards/0.md"),
}  # fmt: skip
_wrong = [
    Case(f"export {name}", "instructar export", HUB, told, make, clean=True) for name, (make, told) in _WRONG.items()
]


def _up(here: Path) -> None:
    """A shard beside the dataset's folder, which would be written beside the folder that is made."""
    also("../up.tar", TRAIN)(here)
    (here / "deeper").mkdir()
    shutil.copy(here / "dataset" / TRAIN, here / "deeper" / "up.tar")
    (here / "dataset").rename(here / "deeper" / "dataset")


_wrong.append(
    Case("export shard up", "instructar export", ("{here}/deeper/dataset", *HUB[1:]), "../up.tar", _up, clean=True)
)

_FINE: dict[str, Make] = {
    "as it is": dataset(lambda own: None),
    "half a surrogate in run": facts(lambda stated: stated.update(name="a\ud800b")),
    "half a surrogate in its settings": facts(lambda stated: stated["config"].update(pool="a\ud800b")),
    "half a surrogate in the card": card('---\nlicense: "a\\ud800b"\n---\nx\n'),
    "card not UTF-8": card(b"---\nlicense: mit\n---\n\xff\xfe\n"),
    "meaning not UTF-8": manifest(_odd_meaning),
    "config a list": facts(lambda stated: stated.update(config=[1])),
    "rules of nonsense": facts(lambda stated: stated.update(rules=[1, {"reason": []}])),
}
_fine = [
    Case(f"export {name}", "instructar export", HUB, "{here}/out", make, codes=(0,)) for name, make in _FINE.items()
]


def _two_of_a_name(here: Path) -> None:
    for number, name in enumerate(("a", "b")):
        (here / name).mkdir()
        tar((f"s{number}", members(number)))(here / name)


_GLOB = ("{here}/bad-*.tar", "--to", "folders", "--out", "{here}/out")
_SHARDS: dict[str, tuple[tuple[str, ...], Make, str]] = {
    "nothing": (_GLOB, lambda here: None, "bad-"),
    "of one name": (("{here}/*/bad-0.tar", *_GLOB[1:]), _two_of_a_name, "bad-0.tar"),
    "of no sample": (_GLOB, tar(), "bad-"),
    "over-long id": (_GLOB, tar(("x" * 300, members())), "xxx"),
    "id up": (_GLOB, tar(("../up", members())), "up"),
    "id of an escape": (_GLOB, tar(("a\x1b[31mb", members())), "a sample named"),
    "json of a list": (_GLOB, tar(("a", members(json=b"[]"))), "a"),
    "no target": (_GLOB, tar(("a", members(target__png=None))), "target.png"),
    "over-long member": (_GLOB, tar(("a", members() | {"y" * 200 + ".txt": b"x"})), "yyy"),
    "pipe": (_GLOB, fifo(BAD), BAD),
    "text": (_GLOB, written(BAD, "no tar"), BAD),
    "folder": (_GLOB, folder(BAD), BAD),
}
_shards = [
    Case(f"export shards {name}", "instructar export", arguments, told, make, clean=True)
    for name, (arguments, make, told) in _SHARDS.items()
]


def _imported(here: Path) -> None:
    (here / "dataset").mkdir()
    tar(("a", members()), name=f"dataset/{TRAIN}")(here)


_RUNS: dict[str, tuple[Make, str]] = {
    "missing": (lambda here: None, "{here}/dataset: no dataset is there"),
    "empty": (folder("dataset"), "{here}/dataset: no dataset is there"),
    "a file": (written("dataset", "x"), "{here}/dataset: no dataset is there"),
    "a pipe": (fifo("dataset"), "{here}/dataset: no dataset is there"),
    "an import": (_imported, "{here}/dataset: no dataset is there"),
    "never finished": (written("dataset/settings.json", "{}"), "{here}/dataset: no dataset is there"),
    "versions a pipe": (fifo("dataset/datasets/versions.json"), "versions.json|no dataset is there"),
    "versions of nonsense": (
        written("dataset/datasets/versions.json", '{"published": {"a": 1}}'), "no dataset is there"),
    "versions a number": (written("dataset/datasets/versions.json", '{"published": 3}'), "no dataset is there"),
    "versions up": (
        written("dataset/datasets/versions.json", '{"published": [{"dataset": "../..", "version": "1.0.0"}]}'),
        "no dataset is there"),
}  # fmt: skip
_runs = [
    Case(f"export of {name} to {to}", "instructar export", arguments, told, make, clean=True)
    for to, arguments in (("hub", HUB), ("folders", FOLDERS))
    for name, (make, told) in _RUNS.items()
]
_runs.append(
    Case("export of a tar to hub", "instructar export", ("{here}/bad-0.tar", *HUB[1:]), "no dataset is there",
         tar(("a", members())), clean=True)
)  # fmt: skip
_good = dataset(lambda own: None)
_OUTS = NO_OUT | {
    "with something else": ("{here}/dataset", "--out"),
    "a file": ("{here}/dataset/README.md", "--out"),
    "below a file": ("{here}/dataset/README.md/x", "README.md"),
}
_outs = [
    Case(f"export out {name} to {to}", "instructar export", ("{here}/dataset", "--to", to, "--out", out), told, _good,
         clean=True)
    for to in ("hub", "folders")
    for name, (out, told) in _OUTS.items()
]  # fmt: skip
_PUSH = (*HUB, "--push")
_TOKEN = {"HF_TOKEN": "hunter2", "HF_HUB_OFFLINE": ""}
_options = [
    Case("export to nonsense", "instructar export", (*HUB[:2], "hubb", *HUB[3:]), "did you mean hub", _good,
         clean=True),
    Case("export to nothing", "instructar export", (*HUB[:2], "", *HUB[3:]), "--to", _good, clean=True),
    Case("export folders and push", "instructar export", (*FOLDERS, "--push", "a/b"), "--push", _good, clean=True),
    Case("export folders and push of nothing", "instructar export", (*FOLDERS, "--push", ""), "--push", _good,
         clean=True),
    Case("export folders and reviewers", "instructar export", (*FOLDERS, "--with-reviewers"), "--with-reviewers",
         _good, clean=True),
    *(Case(f"export push {what}", "instructar export", (*_PUSH, name), "--push", _good, clean=True,
           environment=_TOKEN, hidden="hunter2")
      for what, name in {"of one word": "mine", "up": "../up/x", "of nothing": "", "of an address": "https://x/y/z",
                         "of an escape": "a/b\x1b[31m", "of a newline": "a/b\nc"}.items()),
    Case("export push without a token", "instructar export", (*_PUSH, "a/b"), "HF_TOKEN", _good, clean=True,
         environment={"HF_TOKEN": " ", "HF_HUB_OFFLINE": ""}),
    Case("export push offline", "instructar export", (*_PUSH, "a/b"), "HF_HUB_OFFLINE", _good, clean=True,
         environment=_TOKEN | {"HF_HUB_OFFLINE": "1"}, hidden="hunter2"),
]  # fmt: skip

CASES = [*_files, *_wrong, *_fine, *_shards, *_runs, *_outs, *_options]
