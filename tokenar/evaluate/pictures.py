"""The pictures of an evaluation: drawn pictures from files, a sample's true pictures and their parts, and the grid."""

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
"""The largest samples.json that is read, in bytes. Its entry for one picture has about 500."""
GAP, TITLE = 4, 20
"""Pixels between the pictures of a grid, and the height of its titles."""


def read_drawn(path: Path) -> Image.Image:
    """Read a drawn picture as RGB, with transparent pixels on white. UserError if it is not a square picture."""
    drawn = pictures.on_white(pictures.decode(read_file(path, "draw it again", pictures.MAX_BYTES), str(path)))
    if drawn.width != drawn.height:
        raise UserError(f"{path}: {drawn.width} x {drawn.height} pixels, expected a square picture")
    return drawn


def unlisted(folder: Path, sample_ids: Sequence[str]) -> list[str]:
    """The samples that have no drawn picture in ``folder``.

    If the folder has a ``samples.json``, only the pictures listed in it count; others were left by an earlier call.
    """
    listing = folder / "samples.json"
    file_of = {sample_id: f"{file_name(sample_id)}.png" for sample_id in sample_ids}
    present = {file for file in file_of.values() if (folder / file).is_file()}
    if listing.is_file():
        entries = read_json(listing, "draw the pictures again", limit=MAX_LISTING)
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("file"), str) for e in entries
        ):
            raise UserError(f"{listing}: not a list of drawn pictures; draw them again, or remove it")
        present &= {entry["file"] for entry in entries}
    return [sample_id for sample_id in sample_ids if file_of[sample_id] not in present]


def remove_earlier(folder: Path, names: Iterable[str]) -> None:
    """Remove files of an earlier call by their names. Names that lead out of the folder are ignored."""
    for name in names:
        if not Path(name).is_absolute() and ".." not in Path(name).parts:
            (folder / name).unlink(missing_ok=True)


def noted(path: Path, key: str) -> list[Any]:
    """The list under ``key`` in a JSON file that an earlier call wrote. Empty if the file cannot be read."""
    with suppress(UserError):
        content = read_json(path, limit=MAX_LISTING)
        if isinstance(content, dict) and isinstance(content.get(key), list):
            return content[key]
    return []


def fit(picture: Image.Image, side: int) -> Image.Image:
    """Resize a picture to side x side pixels, bicubic and antialiased."""
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.Resampling.BICUBIC)


def as_pixels(picture: Image.Image) -> Pixels:
    """An RGB picture as [S, S, 3] float64 in [0, 1]."""
    return np.asarray(picture, dtype=np.float64) / 255.0


def boxes_of(item: ShardSample) -> list[tuple[float, float, float, float]]:
    """The box of every reference's subject as (left, top, right, bottom) in fractions of the picture's side.

    Without boxes in the sample, the subject of a single reference has the whole picture, and several references have
    none (empty list). UserError for boxes that are not lists of four numbers.
    """
    boxes = item.info.get("boxes")
    if boxes is None:
        return [(0.0, 0.0, 1.0, 1.0)] if len(item.references) == 1 else []
    try:
        numbers = [(float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in boxes]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"sample {item.sample_id}: boxes must be lists of four numbers; make the shard again"
        ) from error
    return numbers if len(numbers) == len(item.references) else []


@dataclass
class Truth:
    """A sample's true pictures, resized to ``side`` pixels, and the parts over which figures are computed.

    ``padding`` is the white margin around a subject that is cut out, as a share of its longer side.
    """

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
        """The mask of each reference's subject: the foreground inside its box."""
        masks = []
        for left, top, right, bottom in map(self._edges, boxes_of(self.item)):
            mask = np.zeros_like(self.foreground)
            mask[top:bottom, left:right] = self.foreground[top:bottom, left:right]
            masks.append(mask)
        return masks

    def parts(self) -> dict[str, Mask]:
        """The masks of the background and of each subject, by the name of the part."""
        return {"background": ~self.foreground} | {f"subject_{i}": mask for i, mask in enumerate(self.subjects)}

    def without_subjects(self, picture: Image.Image) -> Image.Image:
        """The picture with the foreground black, like the background that the model is given."""
        return Image.fromarray(np.where(self.foreground[..., None], 0, np.asarray(picture)).astype(np.uint8))

    def view(self, picture: Image.Image, number: int) -> Image.Image:
        """Subject ``number`` of a picture, cut out along the true foreground's outline, on a white square."""
        cut = picture.convert("RGBA")
        cut.putalpha(Image.fromarray(self.subjects[number].astype(np.uint8) * 255))
        return square_on_white(cut.crop(self._edges(boxes_of(self.item)[number])), self.padding)

    def references(self) -> list[Image.Image]:
        """Every reference, cut out along its alpha, on a white square."""
        return [square_on_white(picture, self.padding) for picture in self.item.references_rgba]

    def _edges(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        """A box in pixels, at least one pixel wide and high."""
        left, top = (min(max(round(edge * self.side), 0), self.side - 1) for edge in box[:2])
        right, bottom = (min(round(edge * self.side), self.side) for edge in box[2:])
        return left, top, max(right, left + 1), max(bottom, top + 1)


def strip(row: Sequence[Image.Image | None], side: int = 128) -> Image.Image:
    """Pictures side by side, each fitted into a square of ``side`` pixels. None leaves a square empty."""
    canvas = Image.new("RGB", (len(row) * (side + GAP) - GAP, side), "white")
    for column, picture in enumerate(row):
        if picture is not None:
            canvas.paste(ImageOps.pad(picture, (side, side), color="white"), (column * (side + GAP), 0))
    return canvas


def grid(titles: Sequence[str], strips: Sequence[Image.Image], side: int = 128) -> Image.Image:
    """Strips below each other, under the titles of their columns."""
    height = TITLE + len(strips) * (side + GAP)
    canvas = Image.new("RGB", (len(titles) * (side + GAP) - GAP, height), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        while len(title) > 1 and pen.textlength(title, font) > side:
            title = title.removesuffix("…")[:-1] + "…"
        pen.text((column * (side + GAP) + side / 2, TITLE / 2), title, "black", font, anchor="mm")
    for number, row in enumerate(strips):
        canvas.paste(row, (0, TITLE + number * (side + GAP)))
    return canvas
