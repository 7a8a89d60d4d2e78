"""Pools of pictures, notes, Parquet files and review tables: bombs, halves, pipes, devices, foreign formats."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from zips import KINDS, damaged_zip

from fuzz.good import make_pool, picture
from fuzz.makers import Make, both, fifo, folder, link, written
from fuzz.runner import Case

ROOT = ("--root", "{here}/runs", "--samples", "2", "--set", "planning.test_share=0")


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or picture(1).convert("RGB")).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def zipped_text(length: int) -> bytes:
    """A PNG with a compressed comment that unpacks to so many bytes."""
    data = encoded("PNG")
    text = b"Comment\0\0" + zlib.compress(b"x" * length, 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return data[:33] + chunk + data[33:]


_PICTURES: dict[str, tuple[str, bytes]] = {
    "empty": ("bad.png", b""),
    "text": ("bad.png", b"no picture"),
    "bomb": ("bad.png", encoded("PNG", Image.new("1", (20_000, 20_000)))),
    "webp bomb": ("bad.webp", encoded("WEBP", Image.new("RGB", (16_000, 16_000)), lossless=True, method=0, quality=0)),
    "huge header": ("bad.png", png_header(2**31 - 1, 2**31 - 1)),
    "wide header": ("bad.png", png_header(2**31 - 1, 1)),
    "zero width": ("bad.png", png_header(0, 10)),
    "little behind a header": ("bad.png", png_header(5000, 5000)),
    "postscript": ("bad.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file closefile\n"),
    "html": ("bad.jpg", b"<html><script>alert(1)</script></html>"),
    "svg": ("bad.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "zip": ("bad.png", b"PK\3\4" + bytes(100)),
    "gzip": ("bad.png", b"\x1f\x8b" + bytes(100)),
    "one byte": ("bad.png", b"\x89"),
    "signature": ("bad.png", b"\x89PNG\r\n\x1a\n"),
}  # fmt: skip
for _kind, _name in (("PNG", "bad.png"), ("JPEG", "bad.jpg"), ("WEBP", "bad.webp"), ("BMP", "bad.bmp")):
    _PICTURES[f"half a {_kind}"] = (_name, encoded(_kind)[: len(encoded(_kind)) // 2])
    _PICTURES[f"head of a {_kind}"] = (_name, encoded(_kind)[:20])

_pictures = [
    Case(f"picture {name}", "instructar curate", (*ROOT, "--pool", "{here}/pool"), f"pool|{file}",
         both(written(f"pool/cats/{file}", data), written(f"pool/dogs/{file}", data[:-1])))
    for name, (file, data) in _PICTURES.items()
]  # fmt: skip

_ODD: dict[str, Make] = {
    "pipe": both(fifo("pool/cats/bad.png"), fifo("pool/dogs/bad.png")),
    "device": both(link("pool/cats/bad.png", "/dev/zero"), link("pool/dogs/bad.png", "/dev/zero")),
    "link to itself": both(link("pool/cats/bad.png", "bad.png"), folder("pool/dogs")),
    "folder": both(folder("pool/cats/bad.png"), folder("pool/dogs/bad.png")),
    "postscript file": both(written("pool/cats/bad.eps", "%!PS\n"), written("pool/dogs/bad.eps", "%!PS\n")),
    "archive": both(written("pool/cats/bad.zip", b"PK"), written("pool/dogs/bad.zip", b"PK")),
    "one category": lambda here: (make_pool(here / "pool", ("cats",)), None)[1],
    "folder link to the root": both(link("pool/cats/loop", "/"), folder("pool/dogs")),
    "folder links in a circle": both(link("pool/cats", "../x"), link("x/dogs", "../y"), link("y/cats", "../x")),
    "folder link in a circle": both(link("pool/cats/loop", ".."), folder("pool/dogs")),
}
_odd = [
    Case(f"pool of a {name}", "instructar curate", (*ROOT, "--pool", "{here}/pool"), "pool", m)
    for name, m in _ODD.items()
]


def _beside(make: Make) -> Make:
    """Something bad in a pool that is good."""

    def made(here: Path) -> None:
        make_pool(here / "pool")
        make(here)

    return made


_NOTES = {
    "pipe": fifo("pool/cats/cats-0.txt"),
    "device": link("pool/cats/cats-0.txt", "/dev/zero"),
    "folder": folder("pool/cats/cats-0.txt"),
}
_rows = [
    Case(f"row {name}", "instructar curate", (*ROOT, "--pool", "{here}/pool"), "report", _beside(make), (0,), row)
    for name, make, row in (
        ("empty picture", written("pool/cats/bad.png", b""), "bad.png"),
        ("picture bomb", written("pool/cats/bad.png", _PICTURES["bomb"][1]), "pixels"),
        ("half a picture", written("pool/cats/bad.jpg", encoded("JPEG")[:300]), "bad.jpg"),
        ("name not UTF-8", lambda here: (here / "pool/cats/a\udcff.png").write_bytes(b"x") and None, "a"),
        ("name of an escape", written("pool/cats/a\x1b[31m.png", b"x"), "png"),
    )
]
_notes = [
    Case(
        f"note {name}",
        "instructar curate",
        (*ROOT, "--pool", "{here}/pool"),
        "cats-0.txt|report",
        _beside(make),
        (0, 2),
    )
    for name, make in _NOTES.items()
]


def _zip(kind: str, broken: str) -> Make:
    """A good pool in an archive of which one member cannot be unpacked."""

    def make(here: Path) -> None:
        root = make_pool(here / "loose")
        (root / "cats/cats-0.txt").write_text("a small cat of many words")
        files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.*"))}
        (here / "pool.zip").write_bytes(damaged_zip(kind, files, broken))

    return make


_ZIPPED = (*ROOT, "--pool", "{here}/pool.zip")
_zips = [
    *(Case(f"zip with {kind} of a picture", "instructar curate", _ZIPPED, "report", _zip(kind, "cats/cats-1.png"),
           (0,), "cats/cats-1.png: cannot be unpacked from pool.zip") for kind in KINDS),
    *(Case(f"zip with {kind} of a note", "instructar curate", _ZIPPED, "cats-0.txt: cannot be unpacked from pool.zip",
           _zip(kind, "cats/cats-0.txt")) for kind in KINDS),
]  # fmt: skip


def parquet(name: str, columns: dict[str, object], **options: object) -> Make:
    def make(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), here / name, **options)

    return make


def half_parquet(here: Path) -> None:
    parquet("p.parquet", {"image": [encoded("PNG")] * 9})(here)
    (here / "p.parquet").write_bytes((here / "p.parquet").read_bytes()[:-50])


def parquet_bomb(here: Path) -> None:
    """A few kilobytes that stand for three gigabytes."""
    block = pa.array([bytes(3_000_000)])
    array = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), block)
    table = pa.table({"image": array, "category": ["cat", "dog"] * 500})
    pq.write_table(table, here / "p.parquet", compression="zstd", compression_level=19)


_PARQUET: dict[str, Make] = {
    "empty": written("p.parquet", b""),
    "text": written("p.parquet", b"no parquet"),
    "magic": written("p.parquet", b"PAR1" * 20),
    "half": half_parquet,
    "long footer": written("p.parquet", b"PAR1" + bytes(50) + struct.pack("<I", 2**31 - 1) + b"PAR1"),
    "no rows": parquet("p.parquet", {"image": pa.array([], pa.binary()), "category": pa.array([], pa.string())}),
    "no picture column": parquet("p.parquet", {"category": ["a", "b"]}),
    "numbers": parquet("p.parquet", {"image": [1, 2], "category": ["a", "b"]}),
    "nulls": parquet("p.parquet", {"image": pa.array([None, None], pa.binary()), "category": ["a", "b"]}),
    "no pictures": parquet("p.parquet", {"image": [b"x", b"y"], "category": ["a", "b"]}),
    "bomb": parquet_bomb,
    "folder": folder("p.parquet"),
    "device": link("p.parquet", "/dev/zero"),
    "link to itself": link("p.parquet", "p.parquet"),
}
_parquet = [
    Case(f"parquet {name}", "instructar curate", (*ROOT, "--pool", "{here}/p.parquet"), "p.parquet|pool", make)
    for name, make in _PARQUET.items()
]
_parquet += [
    Case(f"parquet {name} in a folder", "instructar curate", (*ROOT, "--pool", "{here}/d"), "p.parquet", make)
    for name, make in (("pipe", fifo("d/p.parquet")), ("device", link("d/p.parquet", "/dev/zero")))
]
_COLUMN = "references.pool=[{{source: '{here}/p.parquet', image: x}}]"
_made = parquet("p.parquet", {"image": [b"x"], "category": ["a"]})
_parquet.append(Case("parquet column", "instructar curate", (*ROOT, "--set", _COLUMN), "x", _made))

_REVIEW = "runs/quickstart/review.parquet"
_reviews = [
    Case(f"review {name}", "instructar curate", (*ROOT, "--pool", "{pool}"), "review.parquet", make)
    for name, make in (
        ("text", written(_REVIEW, b"no parquet")),
        ("columns", parquet(_REVIEW, {"sample": ["a"], "verdict": ["kept"]})),
        ("types", parquet(_REVIEW, {"sample_id": [1], "verdict": [2]})),
        ("folder", folder(_REVIEW)),
        ("pipe", fifo(_REVIEW)),
        ("device", link(_REVIEW, "/dev/zero")),
    )
]

CASES = [*_pictures, *_odd, *_rows, *_notes, *_zips, *_parquet, *_reviews]
