"""The quality stage: faults that labels and features of whole subjects do not show.

Wrong colours, hidden parts, subjects too many, foreground where none was planned, blur and JPEG blocks. It reads what
any synthesis and matting give. It compares parts, not poses (docs/differences.md, "Parts instead of poses").
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from data_schemas.tables import QUALITY
from pipeline.core.stage import Rule, Sample, Stage, StageConfig
from pipeline.identity import encoders
from pipeline.matting.quality import rectangle
from pipeline.quality import correspondence
from pipeline.quality.artefacts import blockiness, sharpness

SHARPNESS_SIDE = 256
"""Longest side in pixels of the target when sharpness is measured, so that a reference need not be enlarged."""
EDGE = 3
"""Pixels left out along a subject's outline, which is sharper or softer than the subject."""


class QualityConfig(StageConfig):
    """Settings of the search for faults of parts."""

    backend: Literal["correspondence"] = Field(
        "correspondence",
        description="`correspondence` compares parts of subject and reference with EfficientNet-Lite0, on the CPU",
    )
    margin: float = Field(
        0.04,
        ge=0,
        le=1,
        description="How far foreground may reach out of the planned boxes, as a share of the picture's side",
    )


class Quality(Stage):
    """Each subject's region is compared with its reference part by part, and the rest of the picture with both."""

    name = "quality"
    version = 1
    columns = QUALITY
    rules = (
        Rule("found_min", "min", 0.54, "subject_incomplete", "Too little of a reference is found in its region."),
        Rule("colour_difference_max", "max", 10.0, "colours_differ", "A subject's colours are not its reference's."),
        Rule("likeness_outside", "max", 0.28, "subject_extra", "Something like a subject lies outside the boxes."),
        Rule("outside_share", "max", 0.25, "foreground_outside", "Much of the foreground lies outside the boxes."),
        Rule("sharpness_min", "min", -0.5, "subject_blurred", "A subject is far less sharp than its reference."),
        Rule("blockiness", "max", 0.4, "jpeg_blocks", "The picture shows the blocks of strong JPEG compression."),
    )
    model = encoders.MODEL
    licence = encoders.LICENCE
    Config = QualityConfig

    def setup(self) -> None:
        encoders.efficientnet()

    def process(self, sample: Sample) -> dict:
        target = sample.picture("synthesis", "target").convert("RGB")
        solid = np.asarray(sample.picture("matting", "alpha").convert("L")) > 127
        boxes = [sample.plan[f"box_{i}"] for i in range(2)]
        cutouts = [sample.reference(i) for i in range(2)]
        grid = correspondence.grid_of(target)
        views = [
            [
                view
                for turned in as_planned(cutouts[i], sample.plan.get(f"turn_{i}") or 0.0)
                for view in correspondence.reference_views(turned, boxes[i], grid.centre)
            ]
            for i in range(2)
        ]
        scores: dict = {}
        for i in range(2):
            region = grid.part(correspondence.near(boxes[i]))
            found, difference = correspondence.compare_region(views[i], region)
            scores[f"found_{i}"] = round(min(1.0, max(-1.0, found)), 6)
            scores[f"colour_difference_{i}"] = round(difference, 4)
            scores[f"sharpness_{i}"] = relative_sharpness(target, solid, cutouts[i], boxes[i])
        known = [cells for pair in views for cells, _ in pair]
        sharp = [scores[f"sharpness_{i}"] for i in range(2) if scores[f"sharpness_{i}"] is not None]
        return {
            **scores,
            "found_min": min(scores["found_0"], scores["found_1"]),
            "colour_difference_max": max(scores["colour_difference_0"], scores["colour_difference_1"]),
            "sharpness_min": min(sharp, default=0.0),
            "likeness_outside": round(correspondence.likeness_outside(grid, boxes, known), 6),
            "outside_share": round(outside_share(solid, boxes, self.config.margin), 6),
            "blockiness": round(blockiness(np.asarray(target.convert("L"))), 6),
        }


def as_planned(cutout: Image.Image, turn: float) -> list[Image.Image]:
    """The cut-out (RGBA), and turned as its relation plans (degrees): features know a subject that lies no longer."""
    if not turn:
        return [cutout]
    turned = cutout.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    return [cutout, turned.crop(turned.getchannel("A").getbbox())]


def outside_share(solid: np.ndarray, boxes: list[list[float]], margin: float) -> float:
    """The share of the foreground (mask [H, W]) that lies outside all boxes, each enlarged by ``margin``."""
    free = solid.copy()
    for left, top, right, bottom in boxes:
        free[rectangle((left - margin, top - margin, right + margin, bottom + margin), solid.shape)] = False
    return float(free.sum() / solid.sum()) if solid.any() else 0.0


def relative_sharpness(target: Image.Image, solid: np.ndarray, cutout: Image.Image, box: list[float]) -> float | None:
    """Sharpness of the foreground in ``box`` less that of the reference (RGBA) at the same size; None if too small."""
    scale = min(1.0, SHARPNESS_SIDE / max(target.size))
    size = (max(1, round(target.width * scale)), max(1, round(target.height * scale)))
    mask = np.zeros(size[::-1], bool)
    area = rectangle(box, mask.shape)
    mask[area] = cv2.resize(solid.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[area] > 0
    grey = np.asarray(target.convert("L").resize(size, Image.Resampling.LANCZOS))
    fit = min((box[2] - box[0]) * size[0] / cutout.width, (box[3] - box[1]) * size[1] / cutout.height)
    shown = (max(1, round(cutout.width * fit)), max(1, round(cutout.height * fit)))
    reference = cutout.convert("RGBa").resize(shown, Image.Resampling.LANCZOS).convert("RGBA")
    own = np.asarray(reference.getchannel("A")) > 230
    difference = sharpness(grey, _inner(mask)) - sharpness(np.asarray(reference.convert("L")), _inner(own))
    return round(difference, 6) if np.isfinite(difference) else None


def _inner(mask: np.ndarray) -> np.ndarray:
    """The mask [H, W] without EDGE pixels along its outline, which the picture's border is too."""
    framed = np.pad(mask.astype(np.uint8), 1)
    return cv2.erode(framed, np.ones((2 * EDGE + 1,) * 2, np.uint8))[1:-1, 1:-1] > 0
