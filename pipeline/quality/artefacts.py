"""Traces of bad image files: the blocks of strong JPEG compression, and blur. They need no model."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

BLOCK = 8
"""Side in pixels of the blocks that JPEG compresses."""
LARGEST_STEP = 40.0
"""Steps between neighbouring pixels count up to so many grey levels, so that an outline is not taken for a grid."""


def blockiness(grey: np.ndarray) -> float:
    """How much larger the steps between pixels are on a grid of BLOCK pixels than beside it (log ratio), of [H, W].

    0 without a grid. The grid may begin anywhere, as a picture may have been cropped.
    """
    ratios = []
    for pixels in (grey, grey.T):
        steps = np.minimum(np.abs(np.diff(pixels.astype(np.float64), axis=1)), LARGEST_STEP).mean(0)
        around = sum(np.roll(steps, shift) for shift in (-2, -1, 1, 2)) / 4
        ratios.append(max((steps[k::BLOCK].sum() + 0.1) / (around[k::BLOCK].sum() + 0.1) for k in range(BLOCK)))
    return float(np.log(ratios).mean())


def sharpness(grey: np.ndarray, mask: np.ndarray) -> float:
    """Log ratio of the finest detail to the next coarser one inside the mask [H, W], of a picture [H, W].

    It does not depend on contrast. NaN if the mask is too small to tell.
    """
    if mask.sum() < 30:
        return float("nan")
    levels = [cv2.GaussianBlur(grey.astype(np.float32), (0, 0), sigma) for sigma in (0.7, 1.4, 2.8)]
    fine, coarse = (float(np.abs(a - b)[mask].mean()) for a, b in pairwise(levels))
    return float(np.log((fine + 0.05) / (coarse + 0.05)))
