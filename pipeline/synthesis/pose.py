"""How a collage shows a subject: mirrored, turned, sheared, in perspective, and where in its box it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

TURN, FREE_TURN, RELATED_TURN = 7.0, 26.0, 3.0
"""Largest random turn in degrees: of a subject that stands on something, of any other one at full strength, and of one
that its relation turns already."""
BENT = 0.24
"""Largest shear, and largest difference of opposite sides, at full strength, as a fraction of the side."""
FLAT = 0.4
"""A subject that fills more than this share of one side of its cut-out stands on it, or is cut off there."""


@dataclass(frozen=True)
class Pose:
    """``turn`` is in degrees counter-clockwise, of which ``free`` only if the subject can be turned freely.

    ``shear``, ``narrowing`` (of the top against the bottom) and ``receding`` (of the left side against the right one)
    are fractions. ``anchor`` says where in its box the subject is: 0 left or top, 1 right or bottom.
    """

    mirrored: bool
    turn: float
    free: float
    shear: float
    narrowing: float
    receding: float
    anchor: tuple[float, float]


def draw_pose(plan: Mapping[str, Any], index: int, strength: float, rng: np.random.Generator) -> Pose:
    """The pose of a plan's subject 0 or 1. It always draws as many random numbers."""
    chance = rng.random()
    turn, shear, narrowing, receding = rng.uniform(-1, 1, 4)
    related = plan[f"turn_{index}"]
    return Pose(
        mirrored=bool(chance < 0.5 and plan[f"mirror_{index}"]),
        turn=related + turn * (RELATED_TURN if related else TURN),
        free=0.0 if related else turn * strength * (FREE_TURN - TURN),
        shear=shear * strength * BENT,
        narrowing=narrowing * strength * BENT,
        receding=receding * strength * BENT,
        anchor=anchor(plan[f"box_{index}"], plan[f"box_{1 - index}"]),
    )


def anchor(box: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Where a subject is in a box that it does not fill: at the other's box if they touch, else at the bottom."""
    if any(box[k] > other[k + 2] or other[k] > box[k + 2] for k in (0, 1)):
        return 0.5, 1.0
    x, y = (other[k] + other[k + 2] - box[k] - box[k + 2] for k in (0, 1))
    if abs(x) >= abs(y):
        return (1.0 if x > 0 else 0.0), 1.0
    return 0.5, (1.0 if y > 0 else 0.0)


def posed(cutout: Image.Image, pose: Pose) -> Image.Image:
    """The cut-out in its pose, RGBA, resampled once. Its place and size do not matter."""
    cutout = ImageOps.mirror(cutout) if pose.mirrored else cutout
    degrees = pose.turn if stands(cutout) else pose.turn + pose.free
    width, height = cutout.size
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    x, y = corners.T
    x, y = x * (1 + pose.narrowing * y / 2) + pose.shear * y, y * (1 + pose.receding * x / 2)
    x, y = x * width / 2, y * height / 2
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    target = np.stack([c * x + s * y, c * y - s * x], 1)
    target -= target.min(0)
    size = [max(1, math.ceil(length - 1e-6)) for length in target.max(0)]
    source = (corners + 1) / 2 * (width, height)
    return cutout.transform(
        (size[0], size[1]), Image.Transform.PERSPECTIVE, perspective(target, source), Image.Resampling.BICUBIC
    )


def stands(cutout: Image.Image) -> bool:
    """Whether the subject stands on something or is cut off: one side of its cut-out is mostly solid."""
    solid = np.asarray(cutout.getchannel("A")) > 127
    thick = [max(1, length // 50) for length in solid.shape]
    sides = (solid[: thick[0]], solid[-thick[0] :], solid[:, : thick[1]].T, solid[:, -thick[1] :].T)
    return any(side.all(0).mean() > FLAT for side in sides)


def perspective(target: np.ndarray, source: np.ndarray) -> tuple[float, ...]:
    """The eight numbers of the perspective that takes four points [4, 2] of the target to those of the source."""
    rows = []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return tuple(np.linalg.solve(np.array(rows), source.reshape(-1)).tolist())
