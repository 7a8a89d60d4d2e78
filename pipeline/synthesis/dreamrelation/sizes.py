"""The sizes of the grounding resampler as settings."""

from __future__ import annotations

from pydantic import Field

from pipeline.core.stage import StageConfig


class ResamplerSizes(StageConfig):
    """Sizes that cannot be read from the adapter's file. The defaults are those of the published adapter."""

    width: int = Field(1280, ge=1, le=16_384, description="Numbers in a token inside the resampler")
    layers: int = Field(4, ge=1, le=256, description="Layers, each of attention and a feed-forward network")
    heads: int = Field(20, ge=1, le=256, description="Attention heads of a layer")
    head_width: int = Field(64, ge=1, le=1024, description="Numbers in a query, key or value of one head")
    queries: int = Field(16, ge=1, le=1024, description="Tokens for each subject")
    ff_mult: int = Field(4, ge=1, le=64, description="Width of the feed-forward network, in multiples of `width`")
