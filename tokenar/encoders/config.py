"""Settings of the frozen encoders: image tokenizer, text encoder and distillation teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from data_schemas.settings import MAX_SEED, Settings

VQ_GROUPS = 32
"""Groups of the VQ networks' group norms; the number of channels of every layer is a multiple of it."""
# The bounds are far above what anybody trains. They stop a mistyped number before it fills the memory.
MAX_SIDE = 8192
MAX_VOCABULARY = 1 << 20
MAX_WIDTH = 1 << 16
MAX_TOKENS = 1 << 14
MAX_BATCH = 1 << 16
MAX_CODEBOOK = 1 << 28
"""Most numbers in a codebook: one gigabyte in float32."""


def check_folder(path: str) -> str:
    """The path unchanged, if it can be a folder on this machine; ValueError for a URL."""
    if "://" in path:
        raise ValueError(f"{path!r} is an address; write to a folder on this machine")
    return path


Folder = Annotated[str, Field(min_length=1), AfterValidator(check_folder)]
DOWNLOADED = "folder, or Hugging Face id of a model that was downloaded before"


class TokenizerConfig(Settings):
    """The patch codebook: every patch of an image is replaced by the nearest of those that k-means found."""

    image_size: int = Field(
        default=64, ge=1, le=MAX_SIDE, description="side of an image in pixels, a multiple of patch"
    )
    patch: int = Field(default=4, ge=1, le=256, description="side in pixels of the patch that a token stands for")
    vocabulary: int = Field(default=512, ge=2, le=MAX_VOCABULARY, description="number of different tokens")
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="seed of the fit")

    @model_validator(mode="after")
    def _patches_fit(self) -> TokenizerConfig:
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch {self.patch}")
        return self


class PatchVqConfig(TokenizerConfig):
    """The VQ tokenizer for small patches (see patch_vq.py). ``latents`` has no default: it is what tells these settings
    from those of the patch codebook."""

    latents: int = Field(ge=1, le=256, description="numbers that describe a patch")
    width: int = Field(default=192, ge=2, le=4096, multiple_of=2, description="channels of the networks")
    steps: int = Field(
        default=200, ge=1, le=10**6, description="steps of the fit, of 32 crops each; about 0.4 s on a processor core"
    )


class VqConfig(Settings):
    """Sizes of a VQ tokenizer's network."""

    ch_mult: tuple[int, ...] = Field(
        min_length=1,
        max_length=8,
        description="channels of each level in multiples of base_channels, fine to coarse; each step halves the sides",
    )
    base_channels: int = Field(
        default=128, ge=VQ_GROUPS, le=1024, multiple_of=VQ_GROUPS, description="channels that ch_mult multiplies"
    )
    z_channels: int = Field(
        default=256, ge=1, le=4096, description="channels that the encoder gives and the decoder takes"
    )
    codebook_size: int = Field(
        default=16384, ge=2, le=MAX_VOCABULARY, description="number of codes: of different tokens"
    )
    codebook_embed_dim: int = Field(default=8, ge=1, le=4096, description="numbers in a code")

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
        """Side in pixels of the square that one token stands for."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of every level, from the finest to the coarsest."""
        return [self.base_channels * factor for factor in self.ch_mult]


def vq16() -> VqConfig:
    """LlamaGen's VQ-16 (``vq_ds16_t2i.pt``), the tokenizer of the published TokenAR: a token for 16 x 16 pixels."""
    return VqConfig(ch_mult=(1, 1, 2, 2, 4))


def vq8() -> VqConfig:
    """LlamaGen's VQ-8: a token for 8 x 8 pixels."""
    return VqConfig(ch_mult=(1, 2, 2, 4))


class TextConfig(Settings):
    """The text encoder that needs no weights: every word has a random vector, the same on every machine."""

    tokens: int = Field(default=16, ge=1, le=MAX_TOKENS, description="words that are read; later ones are cut")
    width: int = Field(default=64, ge=1, le=MAX_WIDTH, description="numbers in a word's vector")


class T5Config(Settings):
    """The T5 text encoder."""

    model: str = Field(default="google/flan-t5-xl", min_length=1, description=DOWNLOADED)
    revision: str = Field(default="main", min_length=1, description="branch, tag or commit of model on the hub")
    tokens: int = Field(
        default=120, ge=1, le=MAX_TOKENS, description="longer prompts are cut, shorter ones padded on the right"
    )
    clean: bool = Field(default=False, description="clean captions first; the published model does not")


def text_config(values: object, source: str) -> TextConfig | T5Config:
    """The settings of either text encoder from plain values; UserError that names ``source`` and the first mistake."""
    kind = T5Config if isinstance(values, dict) and "model" in values else TextConfig
    return kind.parse(values, source)


class TeacherConfig(Settings):
    """The distillation teacher, or both of them (paper, appendix A)."""

    kind: Literal["dinov2", "clip", "both"] = Field(
        default="dinov2", description="whose features are learned; a network that is not named is not used"
    )
    model: str = Field(default="facebook/dinov2-base", min_length=1, description=f"DINOv2: {DOWNLOADED}")
    revision: str = Field(default="main", min_length=1, description="branch, tag or commit of model on the hub")
    whole: bool = Field(default=False, description="show DINOv2 the whole image, not the middle 87.5 % as published")
    clip: str = Field(
        default="openai/clip-vit-base-patch16",
        min_length=1,
        description=f"CLIP, whose vision half is used: {DOWNLOADED}",
    )
    clip_revision: str = Field(default="main", min_length=1, description="branch, tag or commit of clip on the hub")


class EncodeConfig(Settings):
    """Settings of one run of tokenar-encode."""

    shards: str = Field(description="glob of the raw shards")
    out: Folder = Field(description="folder of the encoded shards")
    vq: str = Field(description="file of the VQ tokenizer's weights")
    vq_config: VqConfig = Field(default=vq16(), description="sizes of the tokenizer's network; by default VQ-16's")
    image_size: int = Field(
        default=512, ge=1, le=MAX_SIDE, description="pixels; every picture is resized to this square"
    )
    text: T5Config = Field(default=T5Config(), description="T5 that encodes the prompts")
    keep_padding: bool = Field(
        default=False, description="also store the text features at padding, which the released model reads"
    )
    teacher: TeacherConfig | None = Field(default=TeacherConfig(), description="network to distil; None: none")
    batch: int = Field(default=16, ge=1, le=MAX_BATCH, description="samples encoded at once")
    vq_batch: int = Field(
        default=16, ge=1, le=MAX_BATCH, description="pictures in the VQ tokenizer at once, about 1 GB each"
    )
    threads: int = Field(default=8, ge=1, le=256, description="threads that read pictures ahead")
