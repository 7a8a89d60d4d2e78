"""What ``instructar export`` wrote beside the examples, changed by others before ``instructar import`` reads it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from fuzz.exchange.examples import IMPORT
from fuzz.makers import DEEP, DIGITS, Make, fifo, folder, link, written
from fuzz.runner import Case

TAR = "instructar/train-00000.tar"
Members = list[tuple[str, bytes]]


def exported(change: Callable[[Path], object]) -> Make:
    """Folders of two examples with the tar beside them; ``change`` gets the folder of the split."""

    def make(here: Path) -> None:
        from small.run import make_sample, write_shard

        from pipeline.exchange.folders_out import export_to_folders

        write_shard(here / "own" / "train-00000.tar", [make_sample(k, side=64) for k in range(2)])
        export_to_folders(str(here / "own" / "train-00000.tar"), str(here / "data"))
        shutil.rmtree(here / "own")
        change(here / "data" / "train")

    return make


def read(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(entry.name, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]


def write(path: Path, members: Members) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def members(change: Callable[[Members], Members]) -> Make:
    return exported(lambda split: write(split / TAR, change(read(split / TAR))))


def note(content: bytes | str) -> Make:
    """The note of every sample replaced."""
    data = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    return members(lambda held: [(n, data if n.endswith("example.json") else c) for n, c in held])


def stated(**changes: object) -> Make:
    """Values of every sample's note replaced, or left out where they are None."""

    def change(content: bytes) -> bytes:
        facts = {k: v for k, v in (json.loads(content) | changes).items() if v is not None}
        return json.dumps(facts).encode()

    return members(lambda held: [(n, change(c) if n.endswith("example.json") else c) for n, c in held])


def renamed(name: str, changed: bool = False) -> Make:
    """The first sample under another name; ``changed`` makes its files others than those of the export."""

    def change(split: Path) -> None:
        held = read(split / TAR)
        first = held[0][0].partition(".")[0]
        write(split / TAR, [(n.replace(first, name, 1) if n.startswith(f"{first}.") else n, c) for n, c in held])
        if changed:
            (split / "example1" / "description.txt").write_text("another")

    return exported(change)


def instead(make: Callable[[str], Make]) -> Make:
    return exported(lambda split: ((split / TAR).unlink(), make(TAR)(split)))


def _of_both_splits(split: Path) -> None:
    shutil.copytree(split, split.parent / "test")


def _again(split: Path) -> None:
    """A second tar that names the other example under the first one's id."""
    held = read(split / TAR)
    first, second = dict.fromkeys(name.partition(".")[0] for name, _ in held)
    write(split / TAR, [(n, c) for n, c in held if n.startswith(f"{first}.")])
    others = [(n.replace(second, first, 1), c) for n, c in held if n.startswith(f"{second}.")]
    write(split / "instructar" / "train-00001.tar", others)


_BESIDE: dict[str, tuple[Make, str]] = {
    "cut": (exported(lambda split: (split / TAR).write_bytes((split / TAR).read_bytes()[:900])), "train-00000.tar"),
    "empty": (instead(lambda file: written(file, b"")), "train-00000.tar"),
    "text": (instead(lambda file: written(file, "no tar")), "train-00000.tar"),
    "pipe": (instead(fifo), "train-00000.tar"),
    "device": (instead(lambda file: link(file, "/dev/zero")), "train-00000.tar"),
    "folder": (instead(folder), "train-00000.tar"),
    "link to itself": (instead(lambda file: link(file, "train-00000.tar")), "train-00000.tar"),
    "of other members": (members(lambda held: [("a.txt", b"x")]), "a: example.json"),
    "deep": (note(DEEP), "example.json"),
    "digits": (note('{"format": ' + DIGITS + "}"), "example.json"),
    "a list": (note("[1]"), "instructar"),
    "NaN": (note('{"format": NaN}'), "example.json"),
    "not UTF-8": (note(b'{"format": "\xff"}'), "instructar"),
    "of another format": (stated(format=9), "export of this program's format"),
    "without a list": (stated(without={"a": 1}), "export of this program's format"),
    "without files": (stated(files=None), "lacks 'files'"),
    "of another sample": (stated(sample="x"), "other members than exported"),
    "an id twice": (exported(_again), "twice"),
    "over-long id": (renamed("x" * 300, True), "xxx"),
    "tars of one name": (exported(_of_both_splits), "train-00000.tar"),
    "id up": (renamed("../up", True), "up"),
    "id absolute": (renamed("/tmp/up", True), "up"),
    "id of an escape": (renamed("a\x1b[31mb", True), "a sample named"),
}  # fmt: skip
_FINE: dict[str, Make] = {
    "example up": stated(example="../example1"),
    "example absolute": stated(example="/etc"),
    "example a list": stated(example=["example1"]),
    "example of digits": stated(example=10**30),
    "files a list": stated(files=["x"]),
    "id with a folder": renamed("a/b", True),
    "id of an emoji": renamed("🐈", True),
    "a tar more": exported(lambda split: write(split / "instructar" / "other.tar", [])),
}
CASES = [
    *(Case(f"beside {name}", "instructar import", IMPORT, told, make, clean=True)
      for name, (make, told) in _BESIDE.items()),
    *(Case(f"beside {name}", "instructar import", IMPORT, "2 samples in train", make, codes=(0,))
      for name, make in _FINE.items()),
]  # fmt: skip
