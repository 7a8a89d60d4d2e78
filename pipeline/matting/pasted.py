"""The matting stage of a collage whose mattes need not be found: the alpha with which the subjects were pasted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.core.stage import Sample, SampleError
from pipeline.matting.matting import Matting, MattingConfig, true_matte


class PastedConfig(MattingConfig):
    """Mattes without a model, in a hundredth of the time; for training data whose mattes are not the question."""

    backend: Literal["pasted"] = Field(
        "pasted", description="`pasted` takes the alpha with which a collage pasted its subjects; for collages only"
    )


class Pasted(Matting):
    """The collage's own matte."""

    model = "pasted"
    licence = "MIT"
    Config = PastedConfig

    def mattes(self, samples: Sequence[Sample], targets: Sequence[Image.Image]) -> list[np.ndarray]:
        return [pasted_matte(sample) for sample in samples]


def pasted_matte(sample: Sample) -> np.ndarray:
    """The matte [H, W] float32 in 0..1 that the collage saved; SampleError if another synthesis made the picture."""
    matte = true_matte(sample)
    if matte is None:
        raise SampleError("no_true_matte", "only a collage knows its matte; choose matting.backend grabcut or ben2")
    return matte.astype(np.float32) / 255
