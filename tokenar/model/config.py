"""The settings of the transformer, with checks that they fit together and that the model has a sensible size."""

from __future__ import annotations

from math import isqrt
from typing import Literal

from pydantic import Field, model_validator

from data_schemas.settings import Settings
from tokenar.encoders.config import MAX_TOKENS, MAX_VOCABULARY, MAX_WIDTH

MAX_SEQUENCE = 1 << 17
"""Most tokens of one sample: 16 times the published length."""
MAX_PARAMETERS = 20 * 10**9
"""Most parameters: three times the largest published size."""

CLIP_SIDE = 14
"""Patches along a side of an image in the published CLIP teacher."""


class ModelConfig(Settings):
    """Settings of the transformer.

    Each of the three parts of the method can be switched off: ``index_embedding``, ``instruct_tokens`` (0 is off) and
    ``identity_disentanglement``. Where the released program differs from the paper or from itself, a field offers both
    behaviours; docs/differences.md explains them, and ``released`` and ``tokenar_xl`` are the two sets of choices.
    Five more fields are neither the paper's nor the release's, and off by default: with them a small model learns in
    minutes to look its tokens up in the references (docs/differences.md, "Looking up tokens").
    """

    layers: int = Field(ge=1, le=1024, description="transformer blocks")
    heads: int = Field(ge=1, le=1024, description="attention heads; each is width / heads wide, a multiple of 4")
    kv_heads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="key and value heads, each shared by a group of heads; None: as many as heads",
    )
    width: int = Field(ge=4, le=MAX_WIDTH, description="numbers in the embedding of a position")
    vocabulary: int = Field(
        ge=2, le=MAX_VOCABULARY, description="number of different image tokens, as in the tokenizer"
    )
    grid: int = Field(ge=1, le=512, description="side of an image's token grid; an image has grid x grid tokens")
    max_references: int = Field(
        default=2, ge=1, le=8, description="most references of a sample, without the background"
    )
    background: bool = Field(default=True, description="the last source image is a background; False: image editing")
    text_tokens: int = Field(
        default=120, ge=1, le=MAX_TOKENS, description="positions of the text, as many as the encoder gives"
    )
    text_width: int = Field(
        default=2048,
        ge=1,
        le=MAX_WIDTH,
        description="numbers in a text feature, as many as the encoder gives; Flan-T5-XL's has 2048",
    )
    text_padding: Literal["attended", "masked"] = Field(
        default="attended",
        description="attended: the text's padding is read as if it were text, as released; masked: it is hidden",
    )
    null_embeddings: Literal["trained", "frozen"] = Field(
        default="trained", description="embeddings of dropped images and texts; frozen: they keep their random values"
    )
    instruct_tokens: int = Field(
        default=120, ge=0, le=MAX_TOKENS, description="learned tokens after the text; 0 is off"
    )
    instruct_mode: Literal["casual", "special"] = Field(
        default="casual", description="casual: one set of instruct tokens; special: one for each source image"
    )
    picture_instruct: Literal["own", "last_reference"] = Field(
        default="own",
        description="in special mode, whose set of instruct tokens the picture has; last_reference: as released",
    )
    index_embedding: bool = Field(default=True, description="add to source tokens an embedding of their image")
    background_index: Literal["own", "last_reference"] = Field(
        default="own",
        description="index embedding of the background; own: a row of its own (paper, section 3.1.2); last_reference: "
        "that of the last reference, as released",
    )
    index_on_targets: bool = Field(default=False, description="add the index embedding to the references' copies too")
    index_at_inference: bool = Field(default=True, description="draw with the index embedding too; False: as released")
    identity_disentanglement: bool = Field(default=True, description="predict the references before the picture")
    source_attention: Literal["causal", "block"] = Field(
        default="causal", description="block: a source image attends to all of itself and to nothing else"
    )
    rotary_layout: Literal["grid", "canvas"] = Field(
        default="grid",
        description="grid: every image has a grid of positions of its own; canvas: the sources share one, the targets "
        "another, as released",
    )
    canvas_targets: int | None = Field(
        default=None, ge=1, le=100, description="images the target canvas is made for; None: as many as the target has"
    )
    rotary_base: float = Field(
        default=10000.0,
        gt=1,
        le=1e30,
        description="base of the rotary frequencies; a smaller one sets neighbouring positions further apart",
    )
    text_rotary: Literal["zero", "identity"] = Field(
        default="zero",
        description="queries and keys of text and instruct tokens; zero: made zero, as released; identity: not rotated",
    )
    feed_forward_multiple: int = Field(
        default=256, ge=1, le=MAX_WIDTH, description="the feed-forward width is rounded up to a multiple of it"
    )
    feed_forward_multiplier: float | None = Field(
        default=None, gt=0, le=64, description="factor on the feed-forward width, two thirds of 4 x width; None: 1"
    )
    norm_eps: float = Field(default=1e-5, gt=0, lt=1, description="added to the mean square that a norm divides by")
    tied_output: bool = Field(
        default=False, description="the token table is the output head too; not in published weights"
    )
    copy_head: bool = Field(
        default=False, description="mix the tokens that one attention finds in the source images into the output"
    )
    neighbours: bool = Field(
        default=False,
        description="a target position stands where the token is that it predicts and reads that token's four earlier "
        "neighbours in the image; source tokens read all eight neighbours",
    )
    background_in_place: bool = Field(
        default=False, description="add the background's token at the same place to the picture's positions"
    )
    qk_norm: bool = Field(default=False, description="give queries and keys a fixed length and a learned gain")
    mimetic_start: bool = Field(
        default=False, description="first weights with which attention looks for equal tokens and copies them"
    )
    distill: Literal["dinov2", "clip", "both"] | None = Field(
        default=None, description="teacher whose features are predicted; both: one layer each"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of outputs that training drops in a block")
    text_dropout: float = Field(default=0.1, ge=0, lt=1, description="share of numbers that training drops of the text")

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} must split into {self.heads} heads of a multiple of 4")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self

    @model_validator(mode="after")
    def _background_is_there(self) -> ModelConfig:
        if self.background_in_place and not self.background:
            raise ValueError("background_in_place needs background true")
        if self.instruct_mode == "special" and not (self.background and self.instruct_tokens):
            raise ValueError("instruct_mode special needs background true and instruct_tokens above 0")
        return self

    @model_validator(mode="after")
    def _size_is_sane(self) -> ModelConfig:
        if self.sequence > MAX_SEQUENCE:
            raise ValueError(f"{self.sequence} tokens a sample, more than {MAX_SEQUENCE}; lower grid or max_references")
        if self.parameters > MAX_PARAMETERS:
            raise ValueError(
                f"about {self.parameters / 1e9:.0f} billion parameters, more than {MAX_PARAMETERS // 10**9}; "
                "lower layers, width or vocabulary"
            )
        return self

    @property
    def image_tokens(self) -> int:
        """Tokens of one image (N)."""
        return self.grid * self.grid

    @property
    def source_blocks(self) -> int:
        """Most images in the source: the references and the background."""
        return self.max_references + self.background

    @property
    def target_blocks(self) -> int:
        """Most images in the target: the picture and, with identity disentanglement, the references."""
        return 1 + self.max_references * self.identity_disentanglement

    @property
    def sequence(self) -> int:
        """Most tokens of one sample: text, instruct tokens, source and target images."""
        return self.text_tokens + self.instruct_tokens + (self.source_blocks + self.target_blocks) * self.image_tokens

    @property
    def parameters(self) -> int:
        """About the number of parameters: attention and feed-forward of every layer, tables and text projection."""
        layer = 4 * self.width**2 + 3 * self.width * self.feed_forward_width
        tables = 2 * self.vocabulary + self.text_tokens + self.instruct_tokens
        return self.layers * layer + self.width * (tables + self.text_width + self.width)

    @property
    def canvas_sides(self) -> tuple[int, int]:
        """Images along a side of the source canvas and of the target canvas, in ``rotary_layout="canvas"``
        (docs/differences.md, "Canvas positions"). With two source images the source canvas is two images wide and one
        high, and the target canvas holds one image."""
        if self.source_blocks <= 2 or not self.background:
            return (2 if self.background else 1), 1
        return isqrt(self.source_blocks), isqrt(self.canvas_targets or self.target_blocks)

    @property
    def canvas_problem(self) -> str | None:
        """Why the canvases have no room for this model's images; None if they have, or with ``rotary_layout="grid"``.
        Such a model can be built, as in the release, and fails when it runs."""
        sources, targets = self.canvas_sides
        capacity = self.source_blocks if self.source_blocks == 2 == sources else sources**2
        if self.rotary_layout == "canvas" and self.source_blocks > capacity:
            return f"rotary_layout canvas holds {capacity} of {self.source_blocks} source blocks; use grid"
        if self.rotary_layout == "canvas" and self.target_blocks > targets**2:
            held = f"rotary_layout canvas holds {targets**2} of {self.target_blocks} target blocks"
            return f"{held}; use grid, or set identity_disentanglement to false"
        return None

    @property
    def picture_row(self) -> int:
        """Number of the picture's set of instruct tokens in special mode; those of reference i have number i."""
        return self.max_references - (self.picture_instruct == "last_reference")

    @property
    def teachers(self) -> dict[str, int]:
        """The distillation teachers in order, each with the features of an image that are compared with its own."""
        tokens = {"dinov2": (self.grid // 2) ** 2, "clip": CLIP_SIDE**2}
        names = ("dinov2", "clip") if self.distill == "both" else (self.distill,)
        return {name: tokens[name] for name in names if name is not None}

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads (K)."""
        return self.kv_heads or self.heads

    @property
    def feed_forward_width(self) -> int:
        """Two thirds of 4 * width, times ``feed_forward_multiplier`` if it is set, rounded up to a multiple of
        ``feed_forward_multiple``: the rule of LLaMA and LlamaGen."""
        inner = int(2 * (4 * self.width) / 3)
        if self.feed_forward_multiplier is not None:
            inner = int(self.feed_forward_multiplier * inner)
        return -(-inner // self.feed_forward_multiple) * self.feed_forward_multiple


class DropConfig(Settings):
    """Samples that lose images or text to the null tables in training, so that guidance can be used at inference. The
    defaults are the release's."""

    both: float = Field(default=0.05, ge=0, le=1, description="share of the samples that lose images and text")
    image: float = Field(default=0.05, ge=0, le=1, description="share of the samples that lose the images alone")
    text: float = Field(default=0.05, ge=0, le=1, description="share of the samples that lose the text alone")

    @model_validator(mode="after")
    def _sum(self) -> DropConfig:
        if self.both + self.image + self.text > 1:
            raise ValueError("both + image + text must not exceed 1")
        return self


SIZES = {
    "B": (12, 12, 768), "L": (24, 16, 1024), "XL": (36, 20, 1280), "XXL": (48, 24, 1536), "XXXL": (48, 40, 2560),
    "1B": (22, 32, 2048), "3B": (24, 32, 3200), "7B": (32, 32, 4096),
}  # fmt: skip
"""Published sizes by name: layers, heads, width."""


def released(size: str = "XL") -> ModelConfig:
    """The model of the released training script: images of 512 pixels, three references and a background.

    It computes what the release computes, with its oddities (docs/differences.md has a section for each): images are
    scattered over one canvas of positions, the background has the last reference's index, the null tables are never
    trained, the caption's padding is read as text, and the index embedding is left out at inference. Sampling as
    released also needs ``SampleConfig(copies="drawn", guided_from="first")``.
    """
    layers, heads, width = SIZES[size]
    return ModelConfig(
        layers=layers, heads=heads, width=width, vocabulary=16384, grid=32, max_references=3, rotary_layout="canvas",
        background_index="last_reference", null_embeddings="frozen", index_at_inference=False, distill="dinov2",
        picture_instruct="last_reference",
    )  # fmt: skip


def tokenar_xl() -> ModelConfig:
    """A model of the released size that follows the paper (sections 3.1.1 to 3.1.3) where the release does not:

    - every image keeps its own grid of positions, so that neighbouring tokens have neighbouring positions;
    - every source image has an index of its own, the background too, as the paper gives each source a unique vector.
      The index embedding is used at inference as in training, and on the references' copies;
    - the null tables are trained; in the release they stay random, and guidance compares with noise;
    - the caption's padding is masked, so that the features of padding do not depend on the caption's length.

    Two things stay as in the release. Text positions keep their zero rotation, because training starts from LlamaGen's
    weights, which were trained with it. Instruct tokens come after the text, where the paper has them before the
    references. docs/differences.md has a section on each of these.
    """
    changes: dict[str, object] = {
        "rotary_layout": "grid", "background_index": "own", "index_at_inference": True, "index_on_targets": True,
        "null_embeddings": "trained", "text_padding": "masked", "picture_instruct": "own",
    }  # fmt: skip
    return ModelConfig.model_validate(released().model_dump() | changes)
