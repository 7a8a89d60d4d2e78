"""Settings of the frozen encoders: pictures to tokens, prompts to features, pictures to distillation targets."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

VQ_GROUPS = 32
"""Groups of the VQ networks' norms; every width is a multiple."""


class Settings(BaseModel):
    """Checked on the way in, never changed, and no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerConfig(Settings):
    """The patch codebook. Sides in pixels."""

    image_size: int = Field(default=64, ge=1)
    patch: int = Field(default=4, ge=1)
    vocabulary: int = Field(default=512, ge=2)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _patches_fit(self) -> TokenizerConfig:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch {self.patch}")
        return self


class VqConfig(Settings):
    """Widths of a VQ tokenizer; ``ch_mult`` has one factor of ``base_channels`` a level, finest first."""

    ch_mult: tuple[int, ...] = Field(min_length=1)
    base_channels: int = Field(default=128, ge=VQ_GROUPS, multiple_of=VQ_GROUPS)
    z_channels: int = Field(default=256, ge=1)
    codebook_size: int = Field(default=16384, ge=2)
    codebook_embed_dim: int = Field(default=8, ge=1)

    @field_validator("ch_mult")
    @classmethod
    def _positive(cls, factors: tuple[int, ...]) -> tuple[int, ...]:
        if min(factors) < 1:
            raise ValueError("every factor must be at least 1")
        return factors

    @property
    def reduction(self) -> int:
        """Pixels a token, along one side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of every level, finest first."""
        return [self.base_channels * factor for factor in self.ch_mult]


def vq16() -> VqConfig:
    """16 x 16 pixels a token: LlamaGen's ``vq_ds16_t2i.pt``, the tokenizer of the published TokenAR."""
    return VqConfig(ch_mult=(1, 1, 2, 2, 4))


def vq8() -> VqConfig:
    """8 x 8 pixels a token: LlamaGen's VQ-8."""
    return VqConfig(ch_mult=(1, 2, 2, 4))


class TextConfig(Settings):
    """The hashed words encoder: ``tokens`` positions of ``width`` numbers."""

    tokens: int = Field(default=16, ge=1)
    width: int = Field(default=64, ge=1)


class T5Config(Settings):
    """``model`` is a folder or a Hugging Face id of a T5 whose files are on this machine."""

    model: str = Field(default="google/flan-t5-xl", min_length=1)
    revision: str = Field(default="main", min_length=1)
    tokens: int = Field(default=120, ge=1, description="longer prompts are cut, shorter ones padded on the right")
    clean: bool = Field(default=False, description="clean captions first; the published model reads them as they are")


class TeacherConfig(Settings):
    """``model`` is a folder or a Hugging Face id of a DINOv2 whose files are on this machine."""

    model: str = Field(default="facebook/dinov2-base", min_length=1)
    revision: str = Field(default="main", min_length=1)
    whole: bool = Field(default=False, description="show the whole picture, not the middle 87.5 % as published")
