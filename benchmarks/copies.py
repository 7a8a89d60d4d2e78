"""How many near-copies are found, by how the copy was made, and how many pairs of different subjects pass for copies.

python benchmarks/copies.py --pools packaged generated ~/pictures --count 300

The last line is one JSON object; ``found`` is the share of copies that is found, ``mistaken`` the number of pairs of
different subjects that pass for copies, of ``pairs``.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from data_schemas.io import pictures
from pipeline.references.copies import marks_of, near_pairs
from pipeline.references.cutouts import ReferencesConfig, list_pool, make_references


def recompressed(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def cropped(picture: Image.Image) -> Image.Image:
    x, y = (round(0.03 * side) for side in picture.size)
    return picture.crop((x, y, picture.width - x, picture.height - y))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed as JPEG 60": recompressed,
    "half as large": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS),
    "brighter by 10 %": lambda p: ImageEnhance.Brightness(p).enhance(1.1),
    "15 % less contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.85),
    "30 % more colour": lambda p: ImageEnhance.Color(p).enhance(1.3),
    "cropped by 3 % on each side": cropped,
    "turned by 2 degrees": lambda p: p.rotate(2, Image.Resampling.BICUBIC, fillcolor="white"),
    "mirrored": ImageOps.mirror,
}


def measure(pool: str, count: int) -> dict[str, object]:
    """The figures of one pool; of a large one, ``count`` pictures."""
    named = {"source": pool, "limit": count} if pool != "packaged" else pool
    config = ReferencesConfig.model_validate({"pool": [named]})
    rows, members, _ = make_references(list_pool(config)[:count], config)
    usable = [row for row in rows if row["status"] == "ok"]
    shown = [pictures.decode(members[row["reference_id"]]["white.png"], "cut-out").convert("RGB") for row in usable]
    found = {
        name: [bool([*near_pairs([row, marks_of(copy(picture))])]) for row, picture in zip(usable, shown, strict=True)]
        for name, copy in COPIES.items()
    }
    return {
        "subjects": len(usable), "found": {name: round(float(np.mean(each)), 3) for name, each in found.items()},
        "mistaken": len([*near_pairs(usable)]),
        "pairs": len(usable) * (len(usable) - 1) // 2,
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pools", nargs="+", default=["packaged", "generated"], help="as in references.pool")
    arguments.add_argument("--count", type=int, default=300)
    given = arguments.parse_args()
    print(json.dumps({"benchmark": "copies", **{pool: measure(pool, given.count) for pool in given.pools}}))


if __name__ == "__main__":
    main()
