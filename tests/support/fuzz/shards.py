"""Shards that every command of the model reads: no tar, half a tar, bombs, links, ids twice, foreign members."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from fuzz.makers import DEEP, Make, fifo, folder, link, written
from fuzz.pools import png_header
from fuzz.runner import Case

BAD = "bad-0.tar"


def members(number: int = 0, **changed: bytes | None) -> dict[str, bytes]:
    """A good sample's members; ``changed`` by name with "__" for ".", None leaves one out."""
    from small.run import make_sample

    from data_schemas.shards import encode_sample

    found = encode_sample(make_sample(number, "test", side=64))
    for name, content in changed.items():
        key = name.replace("__", ".")
        found.pop(key) if content is None else found.__setitem__(key, content)
    return found


def tar(*samples: tuple[str, dict[str, bytes]], name: str = BAD) -> Make:
    def make(here: Path) -> None:
        with tarfile.open(here / name, "w") as file:
            for key, found in samples:
                for member, content in found.items():
                    _add(file, f"{key}.{member}", content)

    return make


def _add(file: tarfile.TarFile, name: str, content: bytes, **header: object) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in header.items():
        setattr(entry, key, value)
    file.addfile(entry, io.BytesIO(content))


def good_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for member, content in members().items():
            _add(file, f"a.{member}", content)
    return buffer.getvalue()


def lazily(content: object) -> Make:
    """A file whose bytes are made when the case runs."""
    return lambda here: (here / BAD).write_bytes(content()) and None  # type: ignore[operator]


def sparse(here: Path) -> None:
    """A member that declares two gigabytes and holds none."""
    header = tarfile.TarInfo("a.target.png")
    header.size = 2 * 1024**3
    with open(here / BAD, "wb") as file:
        file.write(header.tobuf())
        file.truncate(512 + header.size + 1024)


def links(kind: bytes) -> Make:
    def make(here: Path) -> None:
        with tarfile.open(here / BAD, "w") as file:
            for member, content in members().items():
                if member == "target.png":
                    entry = tarfile.TarInfo("a.target.png")
                    entry.type, entry.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else "a.alpha.png"
                    file.addfile(entry)
                else:
                    _add(file, f"a.{member}", content)

    return make


def compressed(here: Path) -> None:
    (here / BAD).write_bytes(gzip.compress(good_bytes()))


def _jpeg_bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


_FILES: dict[str, tuple[Make, str]] = {
    "missing": (lambda here: None, "bad-"),
    "folder": (folder(BAD), BAD),
    "pipe": (fifo(BAD), BAD),
    "device": (link(BAD, "/dev/zero"), "bad-"),
    "link to itself": (link(BAD, BAD), BAD),
    "empty": (written(BAD, b""), BAD),
    "text": (written(BAD, b"no tar"), BAD),
    "zeros": (written(BAD, bytes(10240)), "bad-"),
    "half": (lazily(lambda: good_bytes()[:5000]), BAD),
    "no end": (lazily(lambda: good_bytes()[: 512 * (len(good_bytes()) // 1024)]), BAD),
    "gzip": (compressed, BAD),
    "sparse": (sparse, BAD),
    "damaged later header": (lazily(lambda: good_bytes().replace(b"a.target.png", b"a.tarGet.png")), BAD),
    "damaged header": (lazily(lambda: good_bytes()[:100] + b"\xff" * 200 + good_bytes()[300:]), BAD),
    "symbolic link": (links(tarfile.SYMTYPE), BAD),
    "hard link": (links(tarfile.LNKTYPE), BAD),
}

_MEMBERS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "picture empty": ({"target__png": b""}, "target.png"),
    "picture half": ({"target__png": b"\x89PNG\r\n\x1a\n"}, "target.png"),
    "picture bomb": ({"target__png": _jpeg_bomb()}, "target.png"),
    "picture of a huge header": ({"target__png": png_header(2**31 - 1, 2**31 - 1)}, "target.png"),
    "picture missing": ({"background__png": None}, "background.png"),
    "postscript": ({"target__png": b"%!PS-Adobe-3.0\n"}, "target.png"),
    "json deep": ({"json": DEEP.encode()}, "json"),
    "json of many digits": ({"json": b'{"schema_version": 1, "a": ' + b"9" * 5000 + b"}"}, "json"),
    "json a list": ({"json": b"[]"}, "a"),
    "json not UTF-8": ({"json": b'{"a": "\xff"}'}, "json"),
    "version": ({"json": json.dumps({"schema_version": 99}).encode()}, "version"),
    "prompt not UTF-8": ({"prompt__txt": b"\xff\xfe"}, "prompt"),
    "references none": ({"reference_0__png": None}, "references"),
    "matte missing": ({"reference_0__rgba__png": None}, "rgba.png"),
}

_COMMANDS = {
    "train": ("train", ("--config", "{config}", "--out", "{here}/run", "--shards", "{here}/bad-*.tar")),
    "sample": ("sample", ("--model", "{model}", "--out", "{here}/o", "--shards", "{here}/bad-*.tar")),
    "eval": ("eval", ("--model", "{model}", "--out", "{here}/o", "--shards", "{here}/bad-*.tar")),
    "attention": ("attention", ("--model", "{model}", "--out", "{here}/o", "--shards", "{here}/bad-*.tar")),
}
_files = [
    Case(f"shard {name} in {command}", entry, arguments, told, make)
    for command, (entry, arguments) in _COMMANDS.items()
    for name, (make, told) in _FILES.items()
    if command in ("train", "sample") or name in ("folder", "pipe", "device", "sparse", "text", "empty")
]
_members = [
    Case(f"member {name} in {command}", entry, arguments, told, lambda here, c=changed: tar(("a", members(**c)))(here))
    for command, (entry, arguments) in _COMMANDS.items()
    for name, (changed, told) in _MEMBERS.items()
    if command == "train" or name in ("picture bomb", "json deep", "picture missing")
]

_NAMES = {
    "traversal": ("../../up", "up"), "absolute": ("/tmp/up", "up"), "over-long": ("x" * 300, "xxx"),
    "escape": ("a\x1b[31mb", "a"), "empty": ("", BAD), "dots": ("..", BAD),
}  # fmt: skip


def named(name: str) -> Make:
    return lambda here: tar((name, members()), ("b", members(1)))(here)


_names = [
    Case(f"id {what} in eval", "eval",
         ("--predictions", "{request}", "--out", "{here}/o", "--shards", "{here}/bad-*.tar"),
         f"{told}|{BAD}|no prediction", named(name))
    for what, (name, told) in _NAMES.items()
]  # fmt: skip
_names += [
    Case("id escape in sample", *_COMMANDS["sample"], f"a|{BAD}", named(_NAMES["escape"][0])),
    Case("id over-long in sample", *_COMMANDS["sample"], "2 pictures", named(_NAMES["over-long"][0]), codes=(0,)),
]


def twice(here: Path) -> None:
    tar(("a", members()))(here)
    tar(("a", members(1)), name="bad-1.tar")(here)


def folders_twice(here: Path) -> None:
    tar(("x/a", members()), ("b", members(1)), ("x/a", members()))(here)


_twice = [
    Case(f"id twice in {command}", *_COMMANDS[command], "a|twice", make)
    for command in ("sample", "eval")
    for make in (twice,)
]


def of_a_mac(here: Path) -> None:
    with tarfile.open(here / BAD, "w") as file:
        for member, content in members().items():
            _add(file, f"._a.{member}", b"Mac OS X")
            _add(file, f"a.{member}", content)


_fine = [
    Case("mac members in sample", *_COMMANDS["sample"], "1 picture:", of_a_mac, (0,)),
    Case("mac members in train", *_COMMANDS["train"], "model:", of_a_mac, (0,)),
]

CASES = [*_files, *_members, *_names, *_twice, *_fine]
