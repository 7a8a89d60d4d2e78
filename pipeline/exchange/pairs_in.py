"""Pairs of pictures of one subject in Parquet files to shards, as in SubjectSpatial200K (docs/folders.md).

A row's picture shows the subject twice, side by side. As its makers' program reads it, the left half is the picture to
be generated, the right half the reference; ``bbox`` is the subject's box in the left half, as the middle, width and
height in shares of the whole picture, and what is in it is blacked out of the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.new_folders import filling, new_folder
from data_schemas.progress import Progress
from pipeline.core.tar_writer import write_tar
from pipeline.exchange.folders_in import SAMPLES_A_SHARD, Imported, Sample
from pipeline.exchange.samples import members_of
from pipeline.references.parquet import column_names, read_rows

COLUMNS = ("image", "description", "bbox")
RATED = "quality_assessment"
UNIT, MOST = 512, 32
"""Pairs of Subjects200K, of which these are, have a border around each half: a half of 528 pixels is 512 and 8 on each
side. What a half's height is above a multiple of UNIT is taken for border if it is at most MOST."""


def parquet_files(source: str) -> list[Path]:
    """The Parquet files at a path: itself, or those anywhere in the folder; empty if there are none."""
    path = Path(source)
    if path.is_dir():
        return sorted(p for p in path.rglob("*.parquet") if not p.name.startswith("."))
    return [path] if path.suffix == ".parquet" else []


def from_pairs(source: str, out: str, split: str = "train", limit: int | None = None) -> Imported:
    """Make shards of the pairs of a split in the new folder ``out``. Rows whose ratings do not suit the split are left
    out. Raises UserError for files and rows that cannot be read; ``out`` is then not there."""
    files, done = parquet_files(source), Imported()
    with filling(new_folder(out)) as target, Progress("import, pairs", limit or 0, every=100) as bar:
        samples = islice(_samples(files, split, done), limit)
        while (first := next(samples, None)) is not None:
            shard = target / f"{split}-{done.shards:05d}.tar"

            def own(first: Sample = first) -> Iterator[Sample]:
                for sample in chain([first], islice(samples, SAMPLES_A_SHARD - 1)):
                    done.samples[split] = done.samples.get(split, 0) + 1
                    bar.advance()
                    yield sample

            with open(shard, "xb") as file:
                write_tar(file, own())
            done.shards += 1
        if not done.shards:
            raise UserError(f"{source}: no pair is rated for {split}; see docs/folders.md, or give another --split")
    return done


def _samples(files: list[Path], split: str, done: Imported) -> Iterator[Sample]:
    number = 0
    for path in files:
        there = column_names(path)
        for row in read_rows(path, [*COLUMNS, *([RATED] if RATED in there else [])]):
            number += 1
            if RATED in row and not suits(row[RATED], split):
                done.left_out.append(f"row {number} (its ratings)")
                continue
            sample_id = f"pair{number:07d}"
            yield sample_id, pair(row, sample_id, split, f"{path}: row {number}")


def suits(ratings: Any, split: str) -> bool:
    """Whether a pair's ratings (1 to 5) put it into a split, by the rule of the dataset's makers: into train if all are
    5; into test if picture and subject are 5, the composition is 3 or 4. Of what is no ratings, into none."""
    rated = ratings if isinstance(ratings, dict) else {}
    composed, shown, same = (rated.get(k) for k in ("compositeStructure", "imageQuality", "objectConsistency"))
    return (shown, same) == (5, 5) and composed in ((5,) if split == "train" else (3, 4))


def pair(row: dict[str, Any], sample_id: str, split: str, where: str) -> dict[str, bytes]:
    """The members of the sample that a row makes. Raises UserError that names ``where`` and what is wrong."""
    image, told = row["image"], row["description"]
    data = image.get("bytes") if isinstance(image, dict) else image
    text = told.get("description_0") if isinstance(told, dict) else told
    if not isinstance(data, bytes) or not isinstance(text, str):
        raise UserError(f"{where}: no picture or no description_0; get the file again")
    whole = pictures.on_white(pictures.decode(data, where))
    left, right, border = halves(whole, where)
    box = _pixels(row["bbox"], whole, border, where)
    scene = left.copy()
    ImageDraw.Draw(scene).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="black")
    item = told.get("item") if isinstance(told, dict) else None
    name = item if isinstance(item, str) and item else "subject"
    info = {
        "sample_id": sample_id, "split": split, "prompt": text, "subjects": [{"name": name}],
        "boxes": [[box[0] / left.width, box[1] / left.height, box[2] / left.width, box[3] / left.height]],
    }  # fmt: skip
    return members_of(sample_id, [right], scene, left, text.strip(), info)


def halves(whole: Image.Image, where: str) -> tuple[Image.Image, Image.Image, int]:
    """(left half, right half, pixels of border that were cut off each of their sides) of a pair."""
    if whole.width != 2 * whole.height:
        raise UserError(f"{where}: {whole.width} x {whole.height} pixels, not two squares side by side; leave it out")
    side = whole.height
    above = side % UNIT
    border = above // 2 if side > UNIT and above <= MOST else 0
    cut = [(x + border, border, x + side - border, side - border) for x in (0, side)]
    return whole.crop(cut[0]), whole.crop(cut[1]), border


def _pixels(box: Any, whole: Image.Image, border: int, where: str) -> tuple[int, int, int, int]:
    """A subject's box in pixels of the left half: left, top, right, bottom."""
    try:
        x, y, width, height = (float(v) for v in box)
        side = whole.height - 2 * border
        edges = [
            round(middle * length - border + sign * extent * length / 2)
            for middle, extent, length, sign in (
                (x, width, whole.width, -1), (y, height, whole.height, -1),
                (x, width, whole.width, 1), (y, height, whole.height, 1),
            )
        ]  # fmt: skip
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: its bbox {str(box)[:60]} is not four numbers; get the file again") from error
    left, top, right, bottom = (min(max(edge, 0), side) for edge in edges)
    if right <= left or bottom <= top:
        raise UserError(f"{where}: its bbox {str(box)[:60]} has nothing of the left half in it; leave it out")
    return left, top, right, bottom
