"""What all matting backends share: saved pictures, numbers about the matte, rules and a reviewer's corrections."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.tables import MATTING
from pipeline.core.stage import BatchStage, Rule, Sample, SampleError, StageConfig
from pipeline.matting.quality import matte_numbers, overlap


class MattingConfig(StageConfig):
    """Settings of all matting backends."""

    alpha_threshold: float = Field(
        0.5, ge=0, lt=1, description="Pixels with a larger alpha (0 to 1) are foreground, and black in the background"
    )
    dilate: int = Field(3, ge=0, le=64, description="Pixels by which the background's black hole is enlarged")


class Matting(BatchStage):
    """Saves ``alpha`` (L), ``foreground`` (RGBA) and ``background`` (RGB, foreground blacked out).

    Subclasses make mattes.

    A review can replace the threshold (``alpha_threshold``) or the whole matte (``matte_png``) of its sample.
    """

    name = "matting"
    version = 2
    reads = ("plan", "synthesis")
    columns = MATTING
    rules = (
        Rule("area_share", "min", 0.02, "matte_empty", "Hardly anything was cut out."),
        Rule("area_share", "max", 0.9, "matte_full", "Nearly the whole picture was taken for foreground."),
        Rule("alpha_max", "min", 0.5, "matte_uncertain", "Nowhere is the matte sure of a foreground."),
        Rule("soft_share", "max", 0.5, "matte_soft", "Most of the matte is haze."),
        Rule("holes_share", "max", 0.25, "matte_holes", "A large part of the foreground is missing inside it."),
        Rule("components", "max", 6, "matte_fragments", "The foreground fell into many pieces."),
        Rule("box_min_share", "min", 0.05, "matte_box_empty", "Nothing was cut out where a subject was planned."),
    )
    saves_pictures = True
    Config = MattingConfig

    @abstractmethod
    def mattes(self, samples: Sequence[Sample], targets: Sequence[Image.Image]) -> Sequence[np.ndarray]:
        """The matte of each target (RGB): alpha [H, W] float in 0..1, of the target's size."""

    def colours(self, target: Image.Image, alpha: np.ndarray) -> Image.Image:
        """The colours (RGB) of the saved foreground; here the target's own."""
        return target

    def process_batch(self, samples: Sequence[Sample]) -> Sequence[dict | Exception]:
        targets = [sample.picture("synthesis", "target").convert("RGB") for sample in samples]
        todo = [k for k, sample in enumerate(samples) if _reviewed(sample, "matte_png") is None]
        mattes = self.mattes([samples[k] for k in todo], [targets[k] for k in todo]) if todo else []
        alphas = dict(zip(todo, mattes, strict=True))
        results: list[dict | Exception] = []
        for k, (sample, target) in enumerate(zip(samples, targets, strict=True)):
            try:
                alpha = alphas[k] if k in alphas else _replacement(sample, target.size)
                results.append(self._finish(sample, target, alpha))
            except SampleError as error:
                results.append(error)
        return results

    def _finish(self, sample: Sample, target: Image.Image, alpha: np.ndarray) -> dict:
        if not np.isfinite(alpha).all():
            raise SampleError("matte_not_finite", "the matte has values that are no numbers; try precision float32")
        reviewed = _reviewed(sample, "alpha_threshold")
        threshold = float(self.config.alpha_threshold if reviewed is None else reviewed)
        matte = Image.fromarray((alpha * 255).round().astype(np.uint8))
        foreground = self.colours(target, alpha).convert("RGBA")
        foreground.putalpha(matte)
        sample.save("alpha", matte)
        sample.save("foreground", foreground)
        sample.save("background", background(target, alpha > threshold, self.config.dilate))
        scores = matte_numbers(alpha, [sample.plan["box_0"], sample.plan["box_1"]], threshold)
        return {**scores, "true_iou": _true_iou(sample, alpha > threshold)}


def background(target: Image.Image, solid: np.ndarray, dilate: int) -> Image.Image:
    """The target (RGB), black where the mask [H, W], enlarged by ``dilate`` pixels, is foreground."""
    grown = cv2.dilate(solid.astype(np.uint8), np.ones((2 * dilate + 1,) * 2, np.uint8)) > 0
    return Image.fromarray(np.where(grown[..., None], 0, np.asarray(target)).astype(np.uint8))


def true_matte(sample: Sample) -> np.ndarray | None:
    """The matte [H, W] uint8 that a collage saved with its picture; None for any other synthesis, which knows none."""
    if "alpha_true.png" not in sample.files("synthesis"):
        return None
    return np.asarray(sample.picture("synthesis", "alpha_true"))


def _true_iou(sample: Sample, solid: np.ndarray) -> float | None:
    matte = true_matte(sample)
    return None if matte is None else overlap(solid, matte > 127)


def _reviewed(sample: Sample, key: str) -> float | bytes | None:
    return None if sample.review is None else sample.review.get(key)


def _replacement(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """The matte [H, W] that a reviewer provided: a grey picture, or the alpha of a picture that has one."""
    data = _reviewed(sample, "matte_png")
    assert isinstance(data, bytes)
    try:
        picture = pictures.decode(data, "the reviewed matte")
    except UserError as error:
        raise SampleError("bad_reviewed_matte", str(error)) from error
    matte = picture.getchannel("A") if picture.mode == "RGBA" else picture.convert("L")
    matte = matte if matte.size == size else matte.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(matte, np.float32) / 255
