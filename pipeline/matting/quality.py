"""Numbers that describe the quality of a matte, for the columns of the matting table. They need no model."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

SOFT = (0.1, 0.9)
"""Alpha between these two values is neither background nor foreground."""


def matte_numbers(alpha: np.ndarray, boxes: Sequence[Sequence[float]], threshold: float = 0.5) -> dict:
    """The matting table's columns except ``true_iou``, from a matte [H, W] in 0..1 and the planned boxes (fractions).

    A pixel with alpha above ``threshold`` is foreground.
    """
    solid = alpha > threshold
    border = np.concatenate([solid[0], solid[-1], solid[:, 0], solid[:, -1]])
    inside = [box_share(solid, box) for box in boxes]
    return {
        "area_share": round(float(solid.mean()), 6),
        "border_share": round(float(border.mean()), 6),
        "components": count_large(solid, 0.01),
        "soft_share": round(soft_share(alpha), 6),
        "holes_share": round(holes_share(solid), 6),
        "alpha_max": round(float(alpha.max()), 6),
        "box_0_share": round(inside[0], 6),
        "box_1_share": round(inside[1], 6),
        "box_min_share": round(min(inside), 6),
    }


def box_share(solid: np.ndarray, box: Sequence[float]) -> float:
    """The share of a box (left, top, right, bottom as fractions) that is foreground in the mask [H, W]."""
    inside = solid[rectangle(box, solid.shape)]
    return float(inside.mean()) if inside.size else 0.0


def rectangle(box: Sequence[float], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of a box (fractions) in a picture of this shape (H, W); what lies outside it is left out."""
    left, top, right, bottom = (min(1.0, max(0.0, edge)) for edge in box)
    height, width = shape
    return slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))


def count_large(solid: np.ndarray, share: float) -> int:
    """The number of connected pieces of the mask [H, W] that are larger than ``share`` of the picture."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(solid.astype(np.uint8))
    return int((stats[1:, cv2.CC_STAT_AREA] > share * solid.size).sum())


def soft_share(alpha: np.ndarray) -> float:
    """The share of the pixels with alpha above 0.1 in a matte [H, W] whose alpha is below 0.9."""
    touched = int((alpha > SOFT[0]).sum())
    return float(((alpha > SOFT[0]) & (alpha < SOFT[1])).sum() / touched) if touched else 0.0


def holes_share(solid: np.ndarray) -> float:
    """The background that the foreground encloses, as a share of the foreground with its holes filled."""
    _, pieces = cv2.connectedComponents((~solid).astype(np.uint8), connectivity=4)
    outside = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    holes = int((~solid & ~np.isin(pieces, outside)).sum())
    return holes / (holes + int(solid.sum())) if holes else 0.0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    union = (a | b).sum()
    return round(float((a & b).sum() / union), 6) if union else 1.0
