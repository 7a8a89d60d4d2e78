"""Parquet files of pairs that ``instructar import`` reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from fuzz.good import picture
from fuzz.makers import Make, fifo, folder, link, written
from fuzz.pools import encoded, parquet
from fuzz.runner import Case

PAIRS = ("{here}/p.parquet", "--out", "{here}/out")
GOOD = {"imageQuality": 5, "compositeStructure": 5, "objectConsistency": 5}


def columns(**changes: Any) -> dict[str, Any]:
    """A good pair's columns; a name with None is left out."""
    both = Image.new("RGB", (128, 64), "white")
    both.paste(picture(1).convert("RGB"), (0, 0))
    found = {
        "image": [{"bytes": encoded("PNG", both), "path": "a.png"}],
        "description": [{"item": "ball", "description_0": "a ball"}],
        "bbox": [[0.25, 0.5, 0.3, 0.6]],
        "quality_assessment": [GOOD],
    }
    return {name: column for name, column in (found | changes).items() if column is not None}


def pairs(**changes: Any) -> Make:
    return parquet("p.parquet", columns(**changes))


def picture_of(data: bytes | None) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": "a.png"}]


def broken_text(text: bytes = b"\xff\xfe") -> pa.Array:
    """A text column whose bytes are not UTF-8, as some writers make them."""
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, len(text))))
    return pa.StringArray.from_buffers(1, offsets, pa.py_buffer(text))


def half(here: Path) -> None:
    pairs()(here)
    (here / "p.parquet").write_bytes((here / "p.parquet").read_bytes()[:-40])


def twice(here: Path) -> None:
    import pyarrow.parquet as pq

    table = pa.table(columns())
    pq.write_table(table.append_column("bbox", pa.array([[0.25, 0.5, 0.3, 0.6]])), here / "p.parquet")


def bomb(here: Path) -> None:
    import pyarrow.parquet as pq

    block = pa.array([bytes(3_000_000)])
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), block)
    rest = {name: column * 1000 for name, column in columns().items() if name != "image"}
    pq.write_table(pa.table({"image": image} | rest), here / "p.parquet", compression="zstd")


def no_rows(here: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns()).slice(0, 0), here / "p.parquet")


_BOXES: dict[str, Any] = {
    "NaN": [math.nan, 0.5, 0.3, 0.6], "infinite": [math.inf, 0.5, 0.3, 0.6], "of three": [0.5, 0.5, 0.3],
    "of nothing": [], "outside": [3.0, 0.5, 0.3, 0.6], "negative": [0.25, 0.5, -0.3, -0.6],
    "far away": [1e300, 1e300, 1.0, 1.0], "null": None, "of a null": [None, 0.5, 0.3, 0.6],
    "of texts": ["a", "b", "c", "d"], "a text": "left", "a number": 3,
}  # fmt: skip
_RATINGS: dict[str, Any] = {
    "null": None, "a text": '{"imageQuality": 5}', "a number": 5, "a list": [5, 5, 5],
    "of texts": dict.fromkeys(GOOD, "5"),
    "of other keys": {"quality": 5}, "of NaN": dict.fromkeys(GOOD, math.nan), "of lists": {name: [5] for name in GOOD},
}  # fmt: skip
_WRONG: dict[str, tuple[Make, str]] = {
    "empty": (written("p.parquet", b""), "p.parquet"),
    "text": (written("p.parquet", "no parquet"), "p.parquet"),
    "half": (half, "p.parquet"),
    "pipe": (fifo("p.parquet"), "p.parquet"),
    "device": (link("p.parquet", "/dev/zero"), "p.parquet"),
    "folder": (folder("p.parquet"), "p.parquet"),
    "missing": (lambda here: None, "p.parquet"),
    "bomb": (bomb, "p.parquet"),
    "no rows": (no_rows, "no pair"),
    "no image column": (pairs(image=None), "no column 'image'"),
    "no description column": (pairs(description=None), "no column 'description'"),
    "no bbox column": (pairs(bbox=None), "no column 'bbox'"),
    "image null": (pairs(image=pa.array([None], pa.struct({"bytes": pa.binary(), "path": pa.string()}))), "row 1"),
    "image without bytes": (pairs(image=picture_of(None)), "row 1"),
    "image a text": (pairs(image=["a.png"]), "row 1"),
    "image a number": (pairs(image=[3]), "row 1"),
    "image no picture": (pairs(image=picture_of(b"x")), "row 1"),
    "image half": (pairs(image=picture_of(encoded("PNG")[:50])), "row 1"),
    "image bomb": (pairs(image=picture_of(encoded("PNG", Image.new("1", (30_000, 15_000))))), "row 1"),
    "image square": (pairs(image=picture_of(encoded("PNG"))), "row 1"),
    "image of two pixels": (
        pairs(image=picture_of(encoded("PNG", Image.new("RGB", (2, 1)))), bbox=[[9.0] * 4]), "row 1"),
    "description null": (pairs(description=pa.array([None], pa.string())), "row 1"),
    "description a number": (pairs(description=[3]), "row 1"),
    "description not UTF-8": (pairs(description=broken_text()), "p.parquet"),
    "description of nothing": (pairs(description=[{"other": "x"}]), "row 1"),
    **{f"bbox {name}": (pairs(bbox=[box]), "row 1") for name, box in _BOXES.items()},
    **{f"ratings {name}": (pairs(quality_assessment=[given]), "no pair") for name, given in _RATINGS.items()},
}  # fmt: skip
_FINE: dict[str, Make] = {
    "a column twice": twice,
    "no ratings": pairs(quality_assessment=None),
    "description a text": pairs(description=["a ball"]),
    "item not a text": pairs(description=[{"item": b"\xff", "description_0": "a ball"}]),
    "item a number": pairs(description=[{"item": math.nan, "description_0": "a ball"}]),
    "item of an escape": pairs(description=[{"item": "a\x1b[31mb", "description_0": "a\x1b[31mball\0"}]),
    "bbox of whole numbers": pairs(bbox=[[0, 0, 1, 1]]),
    "image of a palette": pairs(image=picture_of(encoded("GIF", Image.new("P", (128, 64))))),
    "image of 16 bits": pairs(image=picture_of(encoded("PNG", Image.new("I;16", (128, 64))))),
    "image without its name": pairs(image=[columns()["image"][0]["bytes"]]),
}


def _beside(make: Callable[[Path], None]) -> Make:
    """A good file and a bad one in a folder."""

    def made(here: Path) -> None:
        (here / "p.parquet").mkdir()
        parquet("a.parquet", columns())(here / "p.parquet")
        make(here / "p.parquet")

    return made


_many = {
    "text": _beside(written("b.parquet", "no parquet")), "pipe": _beside(fifo("b.parquet")),
    "folder": _beside(folder("b.parquet")), "link to itself": _beside(link("b.parquet", "b.parquet")),
    "other columns": _beside(parquet("b.parquet", {"x": [1]})),
}  # fmt: skip
CASES = [
    *(Case(f"pairs {name}", "instructar import", PAIRS, told, make, clean=True)
      for name, (make, told) in _WRONG.items()),
    *(Case(f"pairs {name}", "instructar import", PAIRS, "1 samples in train", make, codes=(0,))
      for name, make in _FINE.items()),
    *(Case(f"pairs beside {name}", "instructar import", PAIRS, "b.parquet", make, clean=True)
      for name, make in _many.items()),
    *(Case(f"pairs ratings {name} for test", "instructar import", (*PAIRS, "--split", "test"), "no pair",
           pairs(quality_assessment=[_RATINGS[name]]), clean=True) for name in ("of texts", "of lists", "a text")),
    Case("pairs limit", "instructar import", (*PAIRS, "--limit", "9" * 30), "limit", pairs(), clean=True),
]  # fmt: skip
