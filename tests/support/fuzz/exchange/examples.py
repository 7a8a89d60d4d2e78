"""Folders of examples that ``instructar import`` reads, and its options."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from fuzz.good import picture
from fuzz.makers import NO_OUT, Make, fifo, folder, link, written
from fuzz.pools import encoded, png_header
from fuzz.runner import Case

IMPORT = ("{here}/data", "--out", "{here}/out")
BOMB = encoded("PNG", Image.new("1", (20_000, 20_000)))


def write(path: Path, number: int = 1) -> None:
    from exchanged import write_example

    write_example(path, number, references=2)


def example(change: Callable[[Path], object], name: str = "one") -> Make:
    """One good example with something changed."""

    def make(here: Path) -> None:
        write(here / "data" / name)
        change(here / "data" / name)

    return make


def instead(file: str, make: Callable[[str], Make]) -> Make:
    """One good example with another thing in a file's place."""

    def change(one: Path) -> None:
        (one / file).unlink(missing_ok=True)
        make(file)(one)

    return example(change)


_THINGS: dict[str, Callable[[str], Make]] = {
    "text": lambda file: written(file, "no picture"),
    "empty": lambda file: written(file, b""),
    "half": lambda file: written(file, encoded("PNG")[:60]),
    "bomb": lambda file: written(file, BOMB),
    "huge header": lambda file: written(file, png_header(2**31 - 1, 2**31 - 1)),
    "pipe": fifo,
    "device": lambda file: link(file, "/dev/zero"),
    "folder": folder,
    "link to itself": lambda file: link(file, Path(file).name),
}
_pictures = [
    Case(f"example {file} {name}", "instructar import", IMPORT, file, instead(file, thing), clean=True)
    for file in ("real.png", "background.png", "ref/ref1.png")
    for name, thing in _THINGS.items()
]
_pictures += [
    Case(f"example description {name}", "instructar import", IMPORT, "description.txt",
         instead("description.txt", _THINGS[name]), clean=True)
    for name in ("pipe", "device", "folder", "link to itself")
]  # fmt: skip


def _huge(file: str) -> Make:
    def make(one: Path) -> None:
        with open(one / file, "wb") as sparse:
            sparse.truncate(50_000_000)

    return make


def _many(one: Path) -> None:
    for number in range(3, 10):
        shutil.copy(one / "ref/ref1.png", one / f"ref/ref{number}.png")


def _large(one: Path) -> None:
    """The most references, each of the most pixels: little on the disk, gigabytes once decoded."""
    Image.new("RGB", (8000, 8000), "red").save(one / "ref/ref1.png")
    for number in range(2, 9):
        shutil.copy(one / "ref/ref1.png", one / f"ref/ref{number}.png")


_WRONG: dict[str, tuple[Make, str]] = {
    "description missing": (example(lambda one: (one / "description.txt").unlink()), "description.txt"),
    "description of 50 MB": (instead("description.txt", _huge), "description.txt"),
    "nine references": (example(_many), "one: 9 references"),
    "large references": (example(_large), "one: "),
    "no background": (example(lambda one: (one / "background.png").unlink()), "--black-background"),
    "no picture": (example(lambda one: (one / "real.png").unlink()), "no real.png"),
    "no references": (example(lambda one: shutil.rmtree(one / "ref")), "no example there"),
    "references a file": (example(lambda one: (shutil.rmtree(one / "ref"), (one / "ref").touch())), "no example there"),
    "references a link to itself": (
        example(lambda one: (shutil.rmtree(one / "ref"), (one / "ref").symlink_to("ref"))), "no example there"),
    "references a pipe": (
        example(lambda one: (shutil.rmtree(one / "ref"), os.mkfifo(one / "ref"))), "no example there"),
    "newline and no picture": (example(lambda one: (one / "real.png").unlink(), "a\nb"), "no example can be used"),
    "nothing": (folder("data"), "{here}/data: no example there"),
    "missing": (lambda here: None, "{here}/data: no example there"),
    "a file": (written("data", "x"), "{here}/data: no example there"),
    "a pipe": (fifo("data"), "{here}/data: no example there"),
    "a link to itself": (link("data", "data"), "{here}/data: no example there"),
}  # fmt: skip
_wrong = [
    Case(f"example {name}", "instructar import", IMPORT, told, make, clean=True)
    for name, (make, told) in _WRONG.items()
]


def stored(file: str, data: bytes) -> Make:
    return example(lambda one: (one / file).write_bytes(data))


def _cmyk() -> bytes:
    return encoded("JPEG", picture(1).convert("CMYK"))


def _animated() -> bytes:
    return encoded("GIF", picture(1).convert("P"), save_all=True, append_images=[picture(2).convert("P")])


def _alone_cleaned(here: Path) -> None:
    for name in ("a b", "a_b", "a.b", "ä b", "x" * 255, "x" * 254 + "y"):
        write(here / "data" / name)


def _not_usable_beside(name: str) -> Make:
    def make(here: Path) -> None:
        write(here / "data" / "good")
        write(here / "data" / name)
        (here / "data" / name / "real.png").unlink()

    return make


def _also(name: str) -> Make:
    """A good example, and one more at another place."""

    def make(here: Path) -> None:
        write(here / "data" / "train" / "one")
        write(here / "data" / name)

    return make


_FINE: dict[str, tuple[Make, str]] = {
    "beside the splits": (_also("two"), "2 samples in train"),
    "of the same name beside the splits": (_also("one"), "2 samples in train"),
    "named like a split": (_also("test"), "1 samples in train, 1 samples in test"),
    "in a folder of another name": (_also("dev/two"), "left out: dev (neither train nor test"),
    "description in Latin-1": (stored("description.txt", b"caf\xe9"), "1 samples in train"),
    "description of nothing": (stored("description.txt", b""), "1 samples in train"),
    "description with NULs": (stored("description.txt", b"a\0b\x1b[31m"), "1 samples in train"),
    "background of another size": (stored("background.png", encoded("PNG", Image.new("RGB", (7, 3)))), "1 samples"),
    "background of one pixel": (stored("background.png", encoded("PNG", Image.new("1", (1, 1)))), "1 samples"),
    "picture of 16 bits": (stored("real.png", encoded("PNG", Image.new("I;16", (64, 64), 3000))), "1 samples"),
    "picture of CMYK": (stored("real.png", _cmyk()), "1 samples"),
    "picture of a palette": (stored("real.png", encoded("PNG", picture(1).convert("P"))), "1 samples"),
    "picture that moves": (stored("real.png", _animated()), "1 samples"),
    "picture with transparency": (stored("real.png", encoded("PNG", picture(1))), "1 samples"),
    "reference of 16 bits": (stored("ref/ref1.png", encoded("PNG", Image.new("I;16", (64, 64), 9))), "1 samples"),
    "names equal when cleaned": (_alone_cleaned, "6 samples in train"),
    "name of a newline": (example(lambda one: None, "a\nb"), "1 samples in train"),
    "name of an emoji": (example(lambda one: None, "🐈" * 60), "1 samples in train"),
    "name not UTF-8": (example(lambda one: None, "a\udcff"), "1 samples in train"),
    "unusable name of an escape": (_not_usable_beside("a\x1b[31mb"), "left out: a"),
    "unusable name of a newline": (_not_usable_beside("a\nerror: b"), "left out: a"),
    "a folder in a circle": (example(lambda one: (one.parent / "loop").symlink_to("..")), "1 samples in train"),
}  # fmt: skip
_fine = [
    Case(f"example {name}", "instructar import", IMPORT, told, make, codes=(0,)) for name, (make, told) in _FINE.items()
]
_good = example(lambda one: None)
_OUTS = NO_OUT | {
    "there": ("{here}/data", "is there already"),
    "a file": ("{here}/data/one/real.png", "is there already"),
    "below a file": ("{here}/data/one/real.png/x", "real.png"),
    "a link to nothing": ("{here}/data/link", "{here}/data/link"),
}


def _with_link(here: Path) -> None:
    write(here / "data" / "one")
    (here / "data" / "link").symlink_to("nothing there")


_outs = [
    Case(f"import out {name}", "instructar import", ("{here}/data", "--out", out), told, _with_link, clean=True)
    for name, (out, told) in _OUTS.items()
]
_outs.append(
    Case("import out inside the source", "instructar import", ("{here}/data", "--out", "{here}/data/one/out"),
         "1 samples in train", _good, codes=(0,))
)  # fmt: skip
_options = [
    Case(f"import {option} {value[:12]} of {len(value)}", "instructar import", (*IMPORT, option, value),
         f"{option}|{option.lstrip('-')}", _good, clean=True)
    for option, values in {
        "--limit": ("0", "-1", "x", "1.5", "9" * 30), "--split": ("tset", "", "../x", "a\nb", "a\x1b[31mb"),
    }.items()
    for value in values
]  # fmt: skip
_options += [
    Case(f"import source {name}", "instructar import", (source, "--out", "{here}/out"), told, clean=True)
    for name, source, told in (
        ("over-long", "x" * 5000, "File name too long"),
        ("not UTF-8", "a\udcffb", "not UTF-8"),
        ("in a bucket", "s3://bucket/x", "s3:"),
        ("an escape", "a\x1b[31mb", "no example there"),
    )
]

CASES = [*_pictures, *_wrong, *_fine, *_outs, *_options]
