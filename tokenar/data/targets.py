"""Instruct mode "special": training draws which image of a sample is the target (docs/differences.md)."""

from __future__ import annotations

from dataclasses import replace

from tokenar.data.samples import Encoded
from tokenar.model.config import ModelConfig


def with_target(sample: Encoded, draw: float, config: ModelConfig) -> Encoded:
    """The sample with the target that ``draw`` in [0, 1) says, and its set of instruct tokens.

    The target is the picture or one of the references, all with one probability. Where the picture has the set of the
    last reference, as released, that reference is no target.
    """
    references = min(sample.references, config.picture_row)
    chosen = int(draw * (references + 1))
    if chosen >= references:
        return replace(sample, instruct=config.picture_row)
    return replace(sample, picture=sample.sources[chosen], instruct=chosen)
