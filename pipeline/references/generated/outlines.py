"""Outlines that generated subjects are put together from: polygons [N, 2] in free units, x to the right, y down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Points = np.ndarray | Sequence[Sequence[float]]
"""Corners [N, 2]."""

Tone = Literal["main", "second", "dark", "light", "hole"]
"""What a part is painted with: the subject's pattern, its second colour, nearly black, nearly white, or nothing."""


@dataclass(frozen=True)
class Part:
    """One part of a subject. Later parts lie on top of earlier ones; a hole takes away what lies under it."""

    tone: Tone
    outline: np.ndarray


def part(tone: Tone, outline: Points) -> Part:
    """A part from any sequence of points."""
    return Part(tone, np.asarray(outline, float))


def ellipse(x: float, y: float, rx: float, ry: float | None = None, turn: float = 0.0, points: int = 48) -> np.ndarray:
    """An ellipse, or a circle without ``ry``, turned clockwise by ``turn`` degrees."""
    return arc(x, y, rx, ry, 0, 360, turn, points)[:-1]


def arc(
    x: float, y: float, rx: float, ry: float | None, start: float, end: float, turn: float = 0.0, points: int = 32
) -> np.ndarray:
    """A piece of an ellipse between two angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, points + 1))
    ring = np.stack([rx * np.cos(angles), (rx if ry is None else ry) * np.sin(angles)], 1)
    return turned(ring, turn) + np.array([x, y])


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """A rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """The points turned clockwise around the origin."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray(points, float) @ np.array([[c, s], [-s, c]])


def smooth(points: Points, rounds: int = 3) -> np.ndarray:
    """The closed polygon with its corners cut ``rounds`` times (Chaikin), which rounds them."""
    ring = np.asarray(points, float)
    for _ in range(rounds):
        following = np.roll(ring, -1, 0)
        ring = np.stack([0.75 * ring + 0.25 * following, 0.25 * ring + 0.75 * following], 1).reshape(-1, 2)
    return ring


def upright(profile: Sequence[tuple[float, float]], rounds: int = 2) -> np.ndarray:
    """The outline that is the same left and right of x = 0. ``profile`` has its half width and y from top to bottom."""
    half = np.asarray(profile, float)
    other = half[::-1] * (-1, 1)
    ring = np.concatenate([half, other])
    return smooth(ring, rounds) if rounds else ring


def spokes(count: int, outer: float, inner: float, start: float = -90.0) -> np.ndarray:
    """A star with ``count`` tips at radius ``outer`` and as many corners at ``inner``."""
    angles = np.radians(start + np.arange(2 * count) * 180 / count)
    radii = np.where(np.arange(2 * count) % 2 == 0, outer, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def polygon(sides: int, radius: float = 1.0, start: float = -90.0) -> np.ndarray:
    """A regular polygon with a corner at ``start`` degrees."""
    return ellipse(0, 0, radius, None, start, sides)


def band(line: Points, width: float) -> np.ndarray:
    """A line of points as a strip of this width."""
    points = np.asarray(line, float)
    along = np.gradient(points, axis=0)
    along /= np.hypot(along[:, :1], along[:, 1:])
    across = np.stack([-along[:, 1], along[:, 0]], 1) * width / 2
    return np.concatenate([points + across, (points - across)[::-1]])
