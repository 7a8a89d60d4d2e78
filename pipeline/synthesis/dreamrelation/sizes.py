"""The sizes of the grounding resampler as settings."""

from __future__ import annotations

from pydantic import Field

from pipeline.core.stage import StageConfig


class ResamplerSizes(StageConfig):
    """Sizes that cannot be read from the adapter's file. The defaults are those of the published adapter."""

    width: int = Field(1280, ge=1, le=16_384)
    layers: int = Field(4, ge=1, le=256)
    heads: int = Field(20, ge=1, le=256)
    head_width: int = Field(64, ge=1, le=1024)
    queries: int = Field(16, ge=1, le=1024, description="Tokens for each subject")
    ff_mult: int = Field(4, ge=1, le=64)
