"""Relations between two subjects and the boxes they are given in the picture, as fractions of its sides."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import yaml

GRID = 32
"""Box edges are rounded to multiples of 1 / GRID, which fall on cell borders of every attention grid."""

MIN_SIDE = 0.16
MIN_UNCOVERED = 0.45
MAX_IOU = 0.45
ATTEMPTS = 20

Box = tuple[float, float, float, float]


@cache
def relation_data() -> dict:
    """relations.yaml: "relations", "layouts", "heights" and "default_height"."""
    return yaml.safe_load((files("pipeline.planning") / "relations.yaml").read_text())


def height_of(category: str) -> float:
    """Height of a subject of this category, as a fraction of its slot's height."""
    words = f" {category.lower()} "
    heights = relation_data()["heights"]
    return next((h for name, h in heights.items() if f" {name} " in words), relation_data()["default_height"])


def draw_boxes(
    layout: str, aspects: Sequence[float], heights: Sequence[float], jitter: float, rng: np.random.Generator
) -> tuple[Box, Box]:
    """Two boxes on the grid, in the order of the layout's slots; half of the time the layout is mirrored.

    ``aspects`` are width / height of the cut-outs, ``heights`` fractions of the slots' heights. Boxes that are too
    small or overlap too much are drawn again; after ATTEMPTS the slots themselves are used.
    """
    entry = relation_data()["layouts"][layout]
    mirrored = rng.random() < 0.5
    fitted = [_fit_into_slot(s, a, h) for s, a, h in zip(entry["slots"], aspects, heights, strict=True)]
    if entry["overlap"] is not None:
        fitted = _move_together(fitted, layout, entry["overlap"])
    for attempt in range(ATTEMPTS + 1):
        if attempt < ATTEMPTS:
            moved = np.array(fitted) + rng.uniform(-jitter, jitter, (2, 4))
        else:
            moved = np.array(entry["slots"])
        if mirrored:
            moved = np.stack([1 - moved[:, 2], moved[:, 1], 1 - moved[:, 0], moved[:, 3]], 1)
        a, b = (_snap(box) for box in moved)
        if boxes_fit(a, b):
            return a, b
    raise RuntimeError(f"layout {layout!r}: its own slots break the rules for boxes; mend relations.yaml")


def _fit_into_slot(slot: Sequence[float], aspect: float, height: float) -> list[float]:
    """A box with the cut-out's aspect ratio, centred at the bottom of its slot and at most a quarter wider than it."""
    left, top, right, bottom = slot
    aspect = min(1.6, max(0.6, aspect))
    tall = min((bottom - top) * height, 1.25 * (right - left) / aspect)
    middle, half = (left + right) / 2, tall * aspect / 2
    return [middle - half, bottom - tall, middle + half, bottom]


def _move_together(boxes: Sequence[Sequence[float]], layout: str, overlap: float) -> list[list[float]]:
    """The boxes moved until they overlap: towards each other, or for "carry" the upper one down onto the lower one."""
    first, second = (list(box) for box in boxes)
    if layout == "carry":
        tall = second[3] - second[1]
        bottom = max(first[1] + overlap * tall, 0.05 + tall)
        second[1], second[3] = bottom - tall, bottom
    else:
        narrow = min(first[2] - first[0], second[2] - second[0])
        gap = max(0.0, second[0] - first[2] + overlap * narrow)
        for edge in (0, 2):
            first[edge] += gap / 2
            second[edge] -= gap / 2
    return [first, second]


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
