"""Relations between two subjects: which subjects they fit, and the boxes and tilts that show them in the picture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
import yaml

GRID = 32
"""Box edges are rounded to multiples of 1 / GRID, which fall on cell borders of every attention grid."""

MIN_SIDE = 0.16
MIN_UNCOVERED = 0.45
MAX_IOU = 0.45
ATTEMPTS = 20
STACKED_HEIGHT = 0.85
"""Least height of a subject that is on another or under it, as a fraction of its slot."""
MARGIN = 0.03
"""Least distance of fitted boxes from the picture's edges, before jitter."""

Box = tuple[float, float, float, float]


@cache
def relation_data() -> dict:
    """relations.yaml: "relations", "animate", "fixed", "heights" and "default_height"."""
    return yaml.safe_load((files("pipeline.planning") / "relations.yaml").read_text())


@lru_cache(maxsize=4096)
def height_of(category: str) -> float:
    """Height of a subject of this category, as a fraction of its slot's height."""
    heights = relation_data()["heights"]
    return next((h for name, h in heights.items() if _contains(category, name)), relation_data()["default_height"])


def is_animate(category: str) -> bool:
    """Whether subjects of this category can hug, dance or carry something."""
    return any(_contains(category, name) for name in relation_data()["animate"])


def suits(category: str, need: str) -> bool:
    """Whether subjects of this category are what a relation needs: any, animate, movable or object."""
    fixed = any(_contains(category, name) for name in relation_data()["fixed"])
    return {
        "any": True,
        "animate": is_animate(category),
        "movable": not fixed,
        "object": not fixed and not is_animate(category),
    }[need]


def _contains(category: str, name: str) -> bool:
    """Whether a category contains the name, or its plural, as whole words."""
    return re.search(rf"\b{re.escape(name)}(s|es)?\b", category.lower()) is not None


def draw_boxes(
    relation: str,
    aspects: Sequence[float],
    heights: Sequence[float],
    jitter: float,
    rng: np.random.Generator,
    close: bool = False,
    mirrored: bool = True,
) -> tuple[tuple[Box, Box], tuple[float, float]]:
    """The boxes of the first and the second subject on the grid, and by how many degrees each is turned.

    Degrees count counter-clockwise. ``aspects`` are width / height of the cut-outs, ``heights`` fractions of the slots'
    heights. With ``close`` both boxes are enlarged together until they fill the picture. With ``mirrored`` left and
    right are exchanged half of the time. Boxes that are too small or overlap too much are drawn again; after ATTEMPTS
    the slots themselves are used.
    """
    entry = relation_data()["relations"][relation]
    exchanged = rng.random() < 0.5 and mirrored
    tilts = [_tilt(degrees, aspect) for degrees, aspect in zip(entry["tilt"], aspects, strict=True)]
    if entry.get("equal"):
        heights = [max(heights)] * 2
    stacked = _is_stacked(entry["slots"])
    if stacked:  # they share the picture's height already
        heights = [max(height, STACKED_HEIGHT) for height in heights]
    fitted = [
        _fit_into_slot(slot, _turned_aspect(aspect, tilt), height)
        for slot, aspect, tilt, height in zip(entry["slots"], aspects, tilts, heights, strict=True)
    ]
    fitted = (_stack if stacked else _join)(fitted, entry["overlap"])
    fitted = _enlarge(fitted) if close else fitted
    for attempt in range(ATTEMPTS + 1):
        if attempt < ATTEMPTS:  # mostly both together, so that subjects that touch still do
            together, each = rng.uniform(-1, 1, 2), rng.uniform(-1, 1, (2, 4))
            moved = np.array(fitted) + jitter * (0.75 * np.tile(together, 2) + 0.25 * each)
        else:
            moved = np.array(entry["slots"])
        if exchanged:
            moved = np.stack([1 - moved[:, 2], moved[:, 1], 1 - moved[:, 0], moved[:, 3]], 1)
        a, b = (_snap(box) for box in moved)
        if boxes_fit(a, b):
            # the first stands left unless they are exchanged, and turns clockwise to lean to the right
            sides = (1.0, 1.0) if stacked else (-1.0, 1.0)
            signs = [-side if exchanged else side for side in sides]
            return (a, b), (signs[0] * tilts[0], signs[1] * tilts[1])
    raise RuntimeError(f"relation {relation!r}: its own slots break the rules for boxes; mend relations.yaml")


def _tilt(degrees: float, aspect: float) -> float:
    """The tilt of a subject: one that is wide lies already."""
    return 0.0 if degrees == 90 and aspect >= 1 else float(degrees)


def _turned_aspect(aspect: float, degrees: float) -> float:
    """Width / height of a turned rectangle's bounds."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(abs(degrees)))
    return (aspect * c + s) / (aspect * s + c)


def _is_stacked(slots: Sequence[Sequence[float]]) -> bool:
    """Whether the slots lie one above the other rather than side by side."""
    x, y = (abs(slots[0][k] + slots[0][k + 2] - slots[1][k] - slots[1][k + 2]) for k in (0, 1))
    return y > x


def _fit_into_slot(slot: Sequence[float], aspect: float, height: float) -> list[float]:
    """A box with the cut-out's aspect ratio, centred at the bottom of its slot and at most a quarter wider than it."""
    left, top, right, bottom = slot
    aspect = min(2.0, max(0.5, aspect))
    tall = min((bottom - top) * height, 1.25 * (right - left) / aspect)
    middle, half = (left + right) / 2, tall * aspect / 2
    return [middle - half, bottom - tall, middle + half, bottom]


def _join(boxes: Sequence[Sequence[float]], overlap: float) -> list[list[float]]:
    """Two boxes side by side, moved until they overlap as much; both smaller if there is no room for them."""
    wide = [box[2] - box[0] for box in boxes]
    room = sum(wide) - overlap * min(wide)
    scale = min(1.0, (1 - 2 * MARGIN) / room)
    left = 0.5 - scale * room / 2
    right = 0.5 + scale * room / 2
    first, second = boxes
    return [
        [left, first[3] - scale * (first[3] - first[1]), left + scale * wide[0], first[3]],
        [right - scale * wide[1], second[3] - scale * (second[3] - second[1]), right, second[3]],
    ]


def _stack(boxes: Sequence[Sequence[float]], overlap: float) -> list[list[float]]:
    """The upper of two boxes set on the lower one; both smaller if there is no room for them."""
    upper, lower = sorted(range(2), key=lambda k: boxes[k][3])
    tall = [box[3] - box[1] for box in boxes]
    floor = boxes[lower][3]
    room = tall[lower] + tall[upper] * (1 - overlap)
    scale = min(1.0, (floor - MARGIN) / room)
    bottoms = {lower: floor, upper: floor - scale * (tall[lower] - overlap * tall[upper])}
    stacked = []
    for k, box in enumerate(boxes):
        middle, half = (box[0] + box[2]) / 2, scale * (box[2] - box[0]) / 2
        stacked.append([middle - half, bottoms[k] - scale * tall[k], middle + half, bottoms[k]])
    return stacked


def _enlarge(boxes: Sequence[Sequence[float]]) -> list[list[float]]:
    """Both boxes scaled by the same number, so that together they reach two opposite edges of the picture."""
    low = [min(box[k] for box in boxes) for k in (0, 1)]
    high = [max(box[k] for box in boxes) for k in (2, 3)]
    scale = (1 - 2 * MARGIN) / max(high[0] - low[0], high[1] - low[1])
    middle = [(low[k] + high[k]) / 2 for k in (0, 1)] * 2
    return [[0.5 + scale * (edge - middle[k]) for k, edge in enumerate(box)] for box in boxes]


def _snap(box: Sequence[float]) -> Box:
    left, top, right, bottom = (round(min(0.98, max(0.02, float(edge))) * GRID) / GRID for edge in box)
    return left, top, right, bottom


def boxes_fit(a: Box, b: Box) -> bool:
    """Whether both boxes are large enough and neither hides too much of the other."""
    if min(a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]) < MIN_SIDE:
        return False
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / min(areas) <= 1 - MIN_UNCOVERED and shared / (sum(areas) - shared) <= MAX_IOU
