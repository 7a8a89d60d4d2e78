"""Settings of the frozen encoders: pictures to tokens, prompts to features, pictures to distillation targets."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from data_schemas.settings import MAX_SEED, Settings

VQ_GROUPS = 32
"""Groups of the VQ networks' norms; every width is a multiple."""
# Bounds are far above what anybody trains: they refuse a slip of the keyboard before it fills the memory.
MAX_SIDE = 8192
MAX_VOCABULARY = 1 << 20
MAX_WIDTH = 1 << 16
MAX_TOKENS = 1 << 14
MAX_BATCH = 1 << 16
MAX_CODEBOOK = 1 << 28
"""Numbers in a codebook: a gigabyte of them."""


def check_folder(path: str) -> str:
    """The path, if it can name a folder on this machine; ValueError for an address."""
    if "://" in path:
        raise ValueError(f"{path!r} is an address; write to a folder on this machine")
    return path


Folder = Annotated[str, Field(min_length=1), AfterValidator(check_folder)]


class TokenizerConfig(Settings):
    """The patch codebook. Sides in pixels."""

    image_size: int = Field(default=64, ge=1, le=MAX_SIDE)
    patch: int = Field(default=4, ge=1, le=256)
    vocabulary: int = Field(default=512, ge=2, le=MAX_VOCABULARY)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _patches_fit(self) -> TokenizerConfig:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch {self.patch}")
        return self


class VqConfig(Settings):
    """Widths of a VQ tokenizer; ``ch_mult`` has one factor of ``base_channels`` a level, finest first."""

    ch_mult: tuple[int, ...] = Field(min_length=1, max_length=8)
    base_channels: int = Field(default=128, ge=VQ_GROUPS, le=1024, multiple_of=VQ_GROUPS)
    z_channels: int = Field(default=256, ge=1, le=4096)
    codebook_size: int = Field(default=16384, ge=2, le=MAX_VOCABULARY)
    codebook_embed_dim: int = Field(default=8, ge=1, le=4096)

    @field_validator("ch_mult")
    @classmethod
    def _factors_are_small(cls, factors: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= min(factors) <= max(factors) <= 16:
            raise ValueError("every factor must be 1 to 16")
        return factors

    @model_validator(mode="after")
    def _codebook_fits(self) -> VqConfig:
        if self.codebook_size * self.codebook_embed_dim > MAX_CODEBOOK:
            raise ValueError(f"codebook_size times codebook_embed_dim is more than {MAX_CODEBOOK}; lower one of them")
        return self

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

    tokens: int = Field(default=16, ge=1, le=MAX_TOKENS)
    width: int = Field(default=64, ge=1, le=MAX_WIDTH)


class T5Config(Settings):
    """``model`` is a folder or a Hugging Face id of a T5 whose files are on this machine."""

    model: str = Field(default="google/flan-t5-xl", min_length=1)
    revision: str = Field(default="main", min_length=1)
    tokens: int = Field(
        default=120, ge=1, le=MAX_TOKENS, description="longer prompts are cut, shorter ones padded on the right"
    )
    clean: bool = Field(default=False, description="clean captions first; the published model reads them as they are")


class TeacherConfig(Settings):
    """``model`` is a folder or a Hugging Face id of a DINOv2 whose files are on this machine."""

    model: str = Field(default="facebook/dinov2-base", min_length=1)
    revision: str = Field(default="main", min_length=1)
    whole: bool = Field(default=False, description="show the whole picture, not the middle 87.5 % as published")


class EncodeConfig(Settings):
    """One run of tokenar-encode."""

    shards: str = Field(description="glob of the raw shards")
    out: Folder = Field(description="folder of the encoded shards")
    vq: str = Field(description="file of the VQ tokenizer's weights")
    vq_config: VqConfig = vq16()
    image_size: int = Field(
        default=512, ge=1, le=MAX_SIDE, description="pixels; every picture is resized to this square"
    )
    text: T5Config = T5Config()
    keep_padding: bool = Field(
        default=False, description="also store what the text encoder says at padding, which the released model reads"
    )
    teacher: TeacherConfig | None = Field(default=TeacherConfig(), description="None: no distillation targets")
    batch: int = Field(default=16, ge=1, le=MAX_BATCH, description="samples encoded at once")
    vq_batch: int = Field(
        default=16, ge=1, le=MAX_BATCH, description="pictures in the VQ tokenizer at once, about 1 GB each"
    )
    threads: int = Field(default=8, ge=1, le=256, description="threads that read pictures ahead")
