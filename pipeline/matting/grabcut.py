"""The matting stage on a CPU: GrabCut, started from the planned boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.core.stage import Sample
from pipeline.matting.matting import Matting, MattingConfig


class GrabCutConfig(MattingConfig):
    """Settings of GrabCut. The mask's edge is where its blurred alpha is 0.5."""

    backend: Literal["grabcut"] = Field(
        "grabcut", description="`grabcut` cuts out what stands in the planned boxes, on the CPU and without weights"
    )
    rounds: int = Field(5, ge=1, le=20, description="Iterations of GrabCut")


class GrabCut(Matting):
    """One matte for both boxes, with an edge softened by about a pixel."""

    model = "opencv-grabcut"
    licence = "Apache-2.0"
    Config = GrabCutConfig

    def mattes(self, samples: Sequence[Sample], targets: Sequence[Image.Image]) -> list[np.ndarray]:
        return [
            matte(np.asarray(target), [sample.plan["box_0"], sample.plan["box_1"]], self.config.rounds)
            for sample, target in zip(samples, targets, strict=True)
        ]


def matte(pixels: np.ndarray, boxes: list[list[float]], rounds: int) -> np.ndarray:
    """The matte [H, W] float32 in 0..1 of an RGB picture [H, W, 3]."""
    return cv2.GaussianBlur(grabcut(pixels, boxes, rounds).astype(np.float32), (0, 0), 0.7)


def grabcut(pixels: np.ndarray, boxes: list[list[float]], rounds: int) -> np.ndarray:
    """The foreground mask [H, W] of an RGB picture.

    Inside the boxes is probably foreground, outside certainly is not.
    """
    height, width = pixels.shape[:2]
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    for left, top, right, bottom in boxes:
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        labels[rows, columns] = cv2.GC_PR_FGD
    solid = cv2.morphologyEx(run_grabcut(pixels, labels, rounds), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return keep_large(solid, 0.003)


def run_grabcut(pixels: np.ndarray, labels: np.ndarray, rounds: int) -> np.ndarray:
    """The mask [H, W] of 0 and 1 of an RGB picture [H, W, 3], from GrabCut labels [H, W]. Deterministic."""
    labels, whole = labels.copy(), (0, 0, labels.shape[1], labels.shape[0])  # OpenCV ignores the box if there is a mask
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # OpenCV has one generator for each thread
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    cv2.grabCut(bgr, labels, whole, background, foreground, rounds, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)


def keep_large(solid: np.ndarray, share: float) -> np.ndarray:
    """The mask without connected pieces smaller than ``share`` of the picture."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(solid)
    large = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] >= share * solid.size]
    return np.isin(pieces, large)
