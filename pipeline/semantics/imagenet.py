"""The semantic judge on a CPU. ImageNet labels tell whether both subjects are there, statistics judge the colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from data_schemas.tables import SEMANTICS
from pipeline.core.stage import Rule, Sample, Stage, StageConfig
from pipeline.identity import encoders

NATURAL = ((0.35, 0.9), (0.15, 0.7), (0.45, 0.85))
"""Where each of ``colour_measures`` becomes rare in photographs, and where it is extreme."""
SLACK = 0.1
"""How much more than its references' a measure may be before it counts."""
WHOLE = (0.0, 0.0, 1.0, 1.0)


class ImageNetConfig(StageConfig):
    """Settings of the judge without a language model."""

    backend: Literal["imagenet"] = Field(
        "imagenet", description="`imagenet` compares ImageNet labels and colour statistics, on the CPU"
    )
    padding: float = Field(
        0.08, ge=0, le=1, description="White space on each side of a crop, as a share of its longer side"
    )


class ImageNetJudge(Stage):
    """A subject counts as present if its region gets similar ImageNet labels as its reference."""

    name = "semantics"
    version = 2
    columns = SEMANTICS
    rules = (
        Rule("present_min", "min", 0.15, "subject_missing", "A subject is not where it was planned."),
        Rule("colour_extremity", "max", 0.6, "colour_extreme", "The colours are not those of a photograph."),
    )
    model = encoders.MODEL
    licence = encoders.LICENCE
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
        shown = shown_pixels(target, alpha, [sample.plan["box_0"], sample.plan["box_1"]])
        scores["colour_extremity"] = round(colour_extremity(shown, self._usual_pixels(sample)), 6)
        return scores

    def _usual_pixels(self, sample: Sample) -> np.ndarray:
        """The colours [N, 3] of both references."""
        references = [sample.reference(i) for i in range(2)]
        return np.concatenate([shown_pixels(r, r.getchannel("A"), [WHOLE]) for r in references])


def agreement(p: np.ndarray, q: np.ndarray) -> float:
    """Bhattacharyya coefficient of two label distributions: 0 if they have nothing in common, 1 if they are equal."""
    return float(np.clip(np.sqrt(p * q).sum(), 0, 1))


def shown_pixels(picture: Image.Image, alpha: Image.Image, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """The colours [N, 3] of a picture's foreground inside the boxes; of all that is in them if there is no foreground.

    Boxes are fractions of the picture.
    """
    width, height = picture.size
    inside = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        inside[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    solid = inside & (np.asarray(alpha) > 127)
    return np.asarray(picture.convert("RGB"))[solid if solid.any() else inside]


def colour_extremity(pixels: np.ndarray, usual: np.ndarray) -> float:
    """0 for colours [N, 3] that are natural for their subjects, 1 for extreme ones.

    It is the worst of saturation, burnt channels and a colour cast. Each counts from where photographs become rare
    (three quarters of the pixels more saturated than 0.35, more than 15 % of the channel values at either end of their
    range, one channel with more than 45 % of the light), or from its value in the references' own colours ``usual``
    [M, 3], so a red subject may be red. Inverted and coarsely posterised pictures pass, because their statistics are
    those of photographs.
    """
    scores = []
    for value, own, (low, high) in zip(colour_measures(pixels), colour_measures(usual), NATURAL, strict=True):
        start = max(low, own + SLACK)
        scores.append(ramp(value, start, max(start + SLACK, min(start + high - low, 1.0))))
    return max(scores)


def colour_measures(pixels: np.ndarray) -> tuple[float, float, float]:
    """Of colours [N, 3]: lower quartile of the saturation, share of burnt channel values, share of the main channel."""
    light = pixels / 255.0
    brightest, darkest = light.max(1), light.min(1)
    loud = np.quantile((brightest - darkest) / np.maximum(brightest, 1e-9), 0.25)
    burnt = ((light < 0.004) | (light > 0.996)).mean()
    means = light.mean(0) + 1e-3
    return float(loud), float(burnt), float(means.max() / means.sum())


def ramp(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high`` on, linear in between."""
    return float(np.clip((value - low) / (high - low), 0, 1))
