"""The pictures that an evaluation compares: a sample's truth at one size, its parts, and what a person looks at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.documents import read_json
from data_schemas.io.files import read_file
from data_schemas.io.pictures import FOREGROUND, square_on_white
from data_schemas.shards import ShardSample, file_name
from tokenar.evaluate.metrics import Mask, Pixels

MAX_LISTING = 1_000_000_000
"""Bytes of samples.json: a picture takes half a thousand."""
GAP, TITLE = 4, 20
"""Pixels between the pictures of a grid, and the height of its titles."""


def read_drawn(path: Path) -> Image.Image:
    """A drawn picture, RGB and square; transparency is put on white. UserError naming the file."""
    drawn = pictures.on_white(pictures.decode(read_file(path, "draw it again", pictures.MAX_BYTES), str(path)))
    if drawn.width != drawn.height:
        raise UserError(f"{path}: {drawn.width} x {drawn.height} pixels, expected a square picture")
    return drawn


def unlisted(folder: Path, sample_ids: Sequence[str]) -> list[str]:
    """The samples for which a folder of drawn pictures has none, or only one that an earlier call left behind.

    ``samples.json``, if the folder has one, says which pictures are of the last call.
    """
    listing = folder / "samples.json"
    file_of = {sample_id: f"{file_name(sample_id)}.png" for sample_id in sample_ids}
    there = {file for file in file_of.values() if (folder / file).is_file()}
    if listing.is_file():
        entries = read_json(listing, "draw the pictures again", limit=MAX_LISTING)
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("file"), str) for e in entries
        ):
            raise UserError(f"{listing}: not a list of drawn pictures; draw them again, or remove it")
        there &= {entry["file"] for entry in entries}
    return [sample_id for sample_id in sample_ids if file_of[sample_id] not in there]


def remove_earlier(folder: Path, names: Iterable[str]) -> None:
    """Remove files by names that an earlier call noted; none outside of the folder."""
    for name in names:
        if not Path(name).is_absolute() and ".." not in Path(name).parts:
            (folder / name).unlink(missing_ok=True)


def noted(path: Path, key: str) -> list[Any]:
    """The list that an earlier call noted under ``key`` in a JSON file; empty if there is none that can be read."""
    with suppress(UserError):
        found = read_json(path, limit=MAX_LISTING)
        if isinstance(found, dict) and isinstance(found.get(key), list):
            return found[key]
    return []


def fit(picture: Image.Image, side: int) -> Image.Image:
    """Brought to side x side pixels, bicubic and antialiased."""
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.BICUBIC)


def as_pixels(picture: Image.Image) -> Pixels:
    """RGB -> [S, S, 3] in [0, 1]."""
    return np.asarray(picture, dtype=np.float64) / 255.0


def boxes_of(item: ShardSample) -> list[tuple[float, float, float, float]]:
    """A box for every reference, in fractions (left, top, right, bottom); empty if the sample does not say.

    Without boxes a single reference's subject is the whole foreground. UserError for boxes that are none.
    """
    boxes = item.info.get("boxes")
    if boxes is None:
        return [(0.0, 0.0, 1.0, 1.0)] if len(item.references) == 1 else []
    try:
        found = [(float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in boxes]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"sample {item.sample_id}: boxes must be lists of four numbers; make the shard again"
        ) from error
    return found if len(found) == len(item.references) else []


@dataclass
class Truth:
    """A sample's true pictures at ``side`` pixels, and the parts that figures are taken over."""

    item: ShardSample
    side: int
    padding: float

    @cached_property
    def target(self) -> Image.Image:
        return fit(self.item.target, self.side)

    @cached_property
    def background(self) -> Image.Image:
        return fit(self.item.background, self.side)

    @cached_property
    def pixels(self) -> Pixels:
        return as_pixels(self.target)

    @cached_property
    def foreground(self) -> Mask:
        return np.asarray(fit(self.item.alpha, self.side)) >= FOREGROUND

    @cached_property
    def subjects(self) -> list[Mask]:
        """Of each reference's subject: the foreground inside its box."""
        masks = []
        for left, top, right, bottom in map(self._edges, boxes_of(self.item)):
            mask = np.zeros_like(self.foreground)
            mask[top:bottom, left:right] = self.foreground[top:bottom, left:right]
            masks.append(mask)
        return masks

    def parts(self) -> dict[str, Mask]:
        """The background, and each subject."""
        return {"background": ~self.foreground} | {f"subject_{i}": mask for i, mask in enumerate(self.subjects)}

    def without_subjects(self, picture: Image.Image) -> Image.Image:
        """The picture with the foreground black, as the given background is."""
        return Image.fromarray(np.where(self.foreground[..., None], 0, np.asarray(picture)).astype(np.uint8))

    def view(self, picture: Image.Image, number: int) -> Image.Image:
        """Subject ``number`` of a picture, cut along the true foreground, on a white square."""
        cut = picture.convert("RGBA")
        cut.putalpha(Image.fromarray(self.subjects[number].astype(np.uint8) * 255))
        return square_on_white(cut.crop(self._edges(boxes_of(self.item)[number])), self.padding)

    def references(self) -> list[Image.Image]:
        """Every reference in the same way."""
        return [square_on_white(picture, self.padding) for picture in self.item.references_rgba]

    def _edges(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        """A box in pixels, at least one wide and high."""
        left, top = (min(max(round(edge * self.side), 0), self.side - 1) for edge in box[:2])
        right, bottom = (min(round(edge * self.side), self.side) for edge in box[2:])
        return left, top, max(right, left + 1), max(bottom, top + 1)


def strip(row: Sequence[Image.Image | None], side: int = 128) -> Image.Image:
    """Pictures in a row, each fitted into a square of ``side`` pixels; None leaves a gap."""
    found = Image.new("RGB", (len(row) * (side + GAP) - GAP, side), "white")
    for column, picture in enumerate(row):
        if picture is not None:
            found.paste(ImageOps.pad(picture, (side, side), color="white"), (column * (side + GAP), 0))
    return found


def grid(titles: Sequence[str], strips: Sequence[Image.Image], side: int = 128) -> Image.Image:
    """Strips below each other, under the titles of their columns."""
    height = TITLE + len(strips) * (side + GAP)
    found = Image.new("RGB", (len(titles) * (side + GAP) - GAP, height), "white")
    pen, font = ImageDraw.Draw(found), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        while len(title) > 1 and pen.textlength(title, font) > side:
            title = title.removesuffix("…")[:-1] + "…"
        pen.text((column * (side + GAP) + side / 2, TITLE / 2), title, "black", font, anchor="mm")
    for number, row in enumerate(strips):
        found.paste(row, (0, TITLE + number * (side + GAP)))
    return found
