"""Matting on a CPU: GrabCut seeded with the planned boxes."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from data_schemas.tables import MATTING
from pipeline.stage import Rule, Sample, Stage, StageConfig


class GrabCutConfig(StageConfig):
    """``dilate``: pixels by which the hole in the background is larger than the matte."""

    backend: Literal["grabcut"] = "grabcut"
    rounds: int = Field(5, ge=1, le=20)
    dilate: int = Field(3, ge=0, le=32)


class GrabCut(Stage):
    """Saves ``alpha`` (L), ``foreground`` (RGBA) and ``background`` (RGB, foreground blacked out)."""

    name = "matting"
    version = 1
    reads = ("plan", "synthesis")
    columns = MATTING
    rules = (
        Rule("area_share", "min", 0.02, "matte_empty", "Hardly anything was cut out."),
        Rule("area_share", "max", 0.9, "matte_full", "Nearly the whole picture was taken for foreground."),
    )
    saves_pictures = True
    model = "opencv-grabcut"
    Config = GrabCutConfig

    def process(self, sample: Sample) -> dict:
        target = sample.picture("synthesis", "target").convert("RGB")
        boxes = [sample.plan["box_0"], sample.plan["box_1"]]
        solid = grabcut(np.asarray(target), boxes, self.config.rounds)
        alpha = cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 0.7)
        matte = Image.fromarray((alpha * 255).round().astype(np.uint8))
        foreground = target.convert("RGBA")
        foreground.putalpha(matte)
        grown = cv2.dilate(solid.astype(np.uint8), np.ones((2 * self.config.dilate + 1,) * 2, np.uint8)) > 0
        background = np.where(grown[..., None], 0, np.asarray(target)).astype(np.uint8)
        sample.save("alpha", matte)
        sample.save("foreground", foreground)
        sample.save("background", Image.fromarray(background))
        truth = np.asarray(sample.picture("synthesis", "alpha_true")) > 127
        return {**matte_numbers(solid, boxes), "true_iou": overlap(solid, truth)}


def grabcut(pixels: np.ndarray, boxes: list[list[float]], rounds: int) -> np.ndarray:
    """Foreground mask [H, W] of an RGB picture: probably foreground inside the boxes, surely not outside."""
    height, width = pixels.shape[:2]
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    for left, top, right, bottom in boxes:
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        labels[rows, columns] = cv2.GC_PR_FGD
    solid = cv2.morphologyEx(run_grabcut(pixels, labels, rounds), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return keep_large(solid, 0.003)


def run_grabcut(pixels: np.ndarray, labels: np.ndarray, rounds: int) -> np.ndarray:
    """Mask [H, W] of 0 and 1 for an RGB picture [H, W, 3] from GrabCut labels [H, W]; deterministic."""
    labels, whole = labels.copy(), (0, 0, labels.shape[1], labels.shape[0])  # the box is not used with a mask
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # OpenCV's generator is one for each thread
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    cv2.grabCut(bgr, labels, whole, background, foreground, rounds, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)


def keep_large(solid: np.ndarray, share: float) -> np.ndarray:
    """The mask without connected pieces smaller than ``share`` of the picture."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(solid)
    large = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] >= share * solid.size]
    return np.isin(pieces, large)


def matte_numbers(solid: np.ndarray, boxes: list[list[float]]) -> dict:
    """What a matte looks like, in numbers (columns of the matting table)."""
    height, width = solid.shape
    count, _, stats, _ = cv2.connectedComponentsWithStats(solid.astype(np.uint8))
    border = np.concatenate([solid[0], solid[-1], solid[:, 0], solid[:, -1]])
    inside = [
        solid[round(t * height) : round(b * height), round(left * width) : round(r * width)].mean()
        for left, t, r, b in boxes
    ]
    return {
        "area_share": round(float(solid.mean()), 6),
        "border_share": round(float(border.mean()), 6),
        "components": int((stats[1:, cv2.CC_STAT_AREA] > 0.01 * solid.size).sum()) if count > 1 else 0,
        "box_0_share": round(float(inside[0]), 6),
        "box_1_share": round(float(inside[1]), 6),
    }


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    union = (a | b).sum()
    return round(float((a & b).sum() / union), 6) if union else 1.0
