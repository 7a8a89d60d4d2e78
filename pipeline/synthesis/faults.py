"""Known faults that the collage plants in some samples, so that precision and recall of the filters can be measured."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFilter, ImageOps

Fault = Literal[
    "missing", "swapped", "replaced", "hidden", "third", "duplicated", "hue", "inverted", "colour", "blurred", "jpeg"
]
KINDS: tuple[Fault, ...] = get_args(Fault)
"""The faults that can be planted: all codes of the table but "none"."""

NEED_ANOTHER = {"replaced": "swapped", "third": "duplicated"}
"""Kinds that show a third subject, and what is planted in a pool that has none."""

HUE_TURN = 120
GREY = 20.0
"""A subject whose mean difference between its largest and smallest channel is lower has no hue to turn."""

HIDDEN_SHARE = 0.8
JPEG_QUALITY = 5


def choose_fault(
    index: int, rng: np.random.Generator, share: float, kinds: Sequence[str] = KINDS
) -> tuple[str, int | None]:
    """(fault, subject) of a sample, so that exactly ``share`` of a plan gets a fault. Each kind is equally likely.

    The subject is None if there is no fault or it affects the whole picture. A blur affects either.
    """
    kind, subject, whole = kinds[int(rng.integers(len(kinds)))], int(rng.integers(2)), rng.random() < 0.5
    if int((index + 1) * share) == int(index * share):
        return "none", None
    return kind, None if kind in ("colour", "jpeg", "third") or (kind == "blurred" and whole) else subject


def visible_fault(
    fault: str, subject: int | None, cutouts: Sequence[Image.Image], another: bool
) -> tuple[str, int | None]:
    """The fault, or a related one where this one could not be seen: a grey subject has no hue to turn.

    ``another`` says whether the pool has a third subject.
    """
    if not another:
        fault, subject = NEED_ANOTHER.get(fault, fault), 0 if fault == "third" else subject
    if fault == "hue" and subject is not None and is_grey(cutouts[subject]):
        return ("inverted", subject) if is_grey(cutouts[1 - subject]) else ("hue", 1 - subject)
    return fault, subject


def is_grey(cutout: Image.Image) -> bool:
    """Whether a cut-out (RGBA) has too little colour for its hue to matter."""
    pixels = np.asarray(cutout, np.float32)
    spread = (pixels[..., :3].max(2) - pixels[..., :3].min(2))[pixels[..., 3] > 127]
    return bool(spread.mean() < GREY) if spread.size else True


def spoil_cutout(cutout: Image.Image, fault: str) -> Image.Image:
    """The cut-out (RGBA) with its hue turned, its colours inverted, or blurred; unchanged for any other fault."""
    colours, alpha = cutout.convert("RGB"), cutout.getchannel("A")
    if fault == "hue":
        hue, saturation, value = colours.convert("HSV").split()
        turned = hue.point(lambda h: (h + round(HUE_TURN * 256 / 360)) % 256)
        colours = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    elif fault == "inverted":
        colours = ImageOps.invert(colours)
    elif fault == "blurred":
        blur = ImageFilter.GaussianBlur(0.03 * max(cutout.size))
        # blurred with its alpha, or the colours under transparent pixels would shine in
        colours = cutout.convert("RGBa").filter(blur).convert("RGBA").convert("RGB")
    colours.putalpha(alpha)
    return colours


def hide(layer: Image.Image, cover: Image.Image | None, rng: np.random.Generator) -> Image.Image:
    """The layer (RGBA) with HIDDEN_SHARE of its subject hidden under ``cover`` (L, what lies above it), or erased.

    What ``cover`` leaves over is erased from one side, as if the background stood in front of it.
    """
    alpha = np.asarray(layer.getchannel("A"), np.float32)
    shown = alpha * (1 - np.asarray(cover, np.float32) / 255) if cover is not None else alpha
    direction = rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices(alpha.shape)
    along = np.cos(direction) * columns + np.sin(direction) * rows
    order = np.argsort(along, axis=None)
    left = np.cumsum(shown.ravel()[order])
    end = int(np.searchsorted(left, (1 - HIDDEN_SHARE) * alpha.sum()))
    kept = along <= along.ravel()[order[min(end, order.size - 1)]]
    hidden = layer.copy()
    hidden.putalpha(Image.fromarray(np.where(kept, alpha, 0).astype(np.uint8)))
    return hidden


def covering_box(box: Sequence[float]) -> list[float]:
    """Where the other subject stands when it hides the one in ``box``: on it, and a fifth larger."""
    left, top, right, bottom = box
    wide, tall = 0.1 * (right - left), 0.1 * (bottom - top)
    return [max(0.0, left - wide), max(0.0, top - tall), min(1.0, right + wide), min(1.0, bottom + tall)]


def free_box(covered: np.ndarray, rng: np.random.Generator) -> list[float]:
    """A box (fractions) for one more subject where it hides least of what is ``covered`` [H, W] in 0..1."""
    best, least = [0.0, 0.0, 1.0, 1.0], np.inf
    height, width = covered.shape
    for _ in range(60):
        side = rng.uniform(0.3, 0.42)
        left, top = rng.uniform(0.0, 1 - side, 2)
        rows = slice(round(top * height), round((top + side) * height))
        columns = slice(round(left * width), round((left + side) * width))
        hidden = float(covered[rows, columns].mean())
        if hidden < least:
            best, least = [float(left), float(top), float(left + side), float(top + side)], hidden
    return best


def spoil_picture(picture: Image.Image, fault: str, rng: np.random.Generator) -> Image.Image:
    """The whole picture with extreme colours, as a bad JPEG, or blurred; unchanged for any other fault."""
    if fault == "colour":
        return extreme_colours(picture, rng)
    if fault == "jpeg":
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return Image.open(buffer).convert("RGB")
    if fault == "blurred":
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.01, 0.016) * picture.width))
    return picture


def extreme_colours(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture in colours that no photograph has: a heavy cast, extreme saturation or burnt contrast."""
    kind = rng.integers(3)
    if kind == 0:
        pixels = np.asarray(picture, np.float32)
        cast = np.full(3, 0.12)
        cast[rng.integers(3)] = 1.7
        return Image.fromarray((pixels * cast).clip(0, 255).astype(np.uint8))
    if kind == 1:
        hue, saturation, value = (np.asarray(c, np.int32) for c in picture.convert("HSV").split())
        turned = (hue + rng.integers(64, 192)) % 256
        loud = (saturation * 4 + 200).clip(0, 255)
        merged = np.dstack([turned, loud, (value * 1.2).clip(0, 255)]).astype(np.uint8)
        return Image.fromarray(merged, "HSV").convert("RGB")
    pixels = np.asarray(picture, np.float32)
    return Image.fromarray(((pixels - pixels.mean((0, 1))) * 12 + 128).clip(0, 255).astype(np.uint8))
