"""The semantic judge on a CPU. ImageNet labels tell whether both subjects are there, statistics judge the colours."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from data_schemas.tables import SEMANTICS
from pipeline.core.stage import Rule, Sample, Stage, StageConfig
from pipeline.identity import encoders


class ImageNetConfig(StageConfig):
    """``padding`` is the white space around a crop, as a fraction of its side."""

    backend: Literal["imagenet"] = "imagenet"
    padding: float = Field(0.08, ge=0, le=1)


class ImageNetJudge(Stage):
    """A subject counts as present if its region gets similar ImageNet labels as its reference."""

    name = "semantics"
    version = 1
    columns = SEMANTICS
    rules = (
        Rule("present_min", "min", 0.15, "subject_missing", "A subject is not where it was planned."),
        Rule("colour_extremity", "max", 0.95, "colour_extreme", "The colours are not those of a photograph."),
    )
    model = encoders.MODEL
    Config = ImageNetConfig

    def setup(self) -> None:
        encoders.efficientnet()
        self.references = encoders.EncodedReferences(encoders.label_probabilities, self.config.padding)

    def process(self, sample: Sample) -> dict:
        target = sample.picture("synthesis", "target").convert("RGB")
        alpha = sample.picture("matting", "alpha")
        references = self.references.of([sample])[0]  # (2, 1000)
        scores: dict = {}
        for i in range(2):
            crop = encoders.region(target, alpha, sample.plan[f"box_{i}"], self.config.padding)
            labels = encoders.encode(crop)[1]
            scores[f"subject_{i}_present"] = round(agreement(labels, references[i]), 6)
            scores[f"subject_{i}_label"] = encoders.label_names()[int(labels.argmax())]
        scores["present_min"] = min(scores["subject_0_present"], scores["subject_1_present"])
        scores["colour_extremity"] = round(colour_extremity(target), 6)
        return scores


def agreement(p: np.ndarray, q: np.ndarray) -> float:
    """Bhattacharyya coefficient of two label distributions: 0 if they have nothing in common, 1 if they are equal."""
    return float(np.clip(np.sqrt(p * q).sum(), 0, 1))


def colour_extremity(picture: Image.Image) -> float:
    """0 for natural colours, 1 for extreme ones: the worst of saturation, burnt channels and a colour cast.

    Each measure counts from where photographs become rare: three quarters of the pixels more saturated than 0.35, more
    than 15 % of the channel values at either end of their range, one channel with more than 45 % of the light. Inverted
    and coarsely posterised pictures pass, because their statistics are those of photographs.
    """
    pixels = np.asarray(picture.convert("RGB"), np.float64) / 255
    saturation = np.asarray(picture.convert("HSV"), np.float64)[..., 1] / 255
    loud = np.quantile(saturation, 0.25)
    burnt = ((pixels < 0.004) | (pixels > 0.996)).mean()
    means = pixels.mean((0, 1)) + 1e-3
    cast = means.max() / means.sum()
    return float(max(ramp(loud, 0.35, 0.9), ramp(burnt, 0.15, 0.7), ramp(cast, 0.45, 0.85)))


def ramp(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high`` on, linear in between."""
    return float(np.clip((value - low) / (high - low), 0, 1))
