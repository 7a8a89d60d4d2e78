"""Identity: each subject's region against each reference, the whole 2 x 2 matrix kept."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import ImageOps
from pydantic import Field

from data_schemas.tables import IDENTITY
from pipeline.identity import encoders
from pipeline.stage import Rule, Sample, Stage, StageConfig


class IdentityConfig(StageConfig):
    """``padding``: white space around a crop, as a fraction of its side."""

    backend: Literal["efficientnet"] = "efficientnet"
    padding: float = Field(0.12, ge=0, le=1)


class Identity(Stage):
    """Whole pictures do not tell identities apart (spec/curation.md), so matted crops of each region are compared."""

    name = "identity"
    version = 1
    columns = IDENTITY
    rules = (
        Rule("similarity_min", "min", 0.4, "identity_low", "A subject does not look like its reference."),
        Rule("swap_margin", "min", 0.1, "identity_swapped", "Regions look more like the other's reference."),
    )
    model = encoders.MODEL
    Config = IdentityConfig

    def setup(self) -> None:
        encoders.load_efficientnet()
        self.references = encoders.EncodedReferences(self.config.padding)

    def process(self, sample: Sample) -> dict:
        target = sample.picture("synthesis", "target").convert("RGB")
        alpha = sample.picture("matting", "alpha")
        references = [self.references.of(sample, i)[0] for i in range(2)]
        matrix = np.zeros((2, 2))
        for i in range(2):
            crop = encoders.region(target, alpha, sample.plan[f"box_{i}"], self.config.padding)
            views = [encoders.encode(view)[0] for view in (crop, ImageOps.mirror(crop))]
            for j in range(2):
                matrix[i, j] = max(float(view @ references[j]) for view in views)
        matrix = matrix.clip(-1, 1).round(6)
        scores = {f"similarity_{i}_{j}": float(matrix[i, j]) for i in range(2) for j in range(2)}
        margin = (np.trace(matrix) - matrix[0, 1] - matrix[1, 0]) / 2
        return {
            **scores,
            "similarity_min": float(np.diag(matrix).min()),
            "swap_margin": round(float(margin), 6),
        }
