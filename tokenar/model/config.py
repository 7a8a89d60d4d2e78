"""The settings of the transformer, checked for what fits together and for a size that can be meant."""

from __future__ import annotations

from math import isqrt
from typing import Literal

from pydantic import Field, model_validator

from data_schemas.settings import Settings
from tokenar.encoders.config import MAX_TOKENS, MAX_VOCABULARY, MAX_WIDTH

MAX_SEQUENCE = 1 << 17
"""Tokens of one sample: 16 times the published length."""
MAX_PARAMETERS = 20 * 10**9
"""Three times the largest published size."""


class ModelConfig(Settings):
    """The transformer. The three parts of the method that can be switched off one by one are ``index_embedding``,
    ``instruct_tokens`` (0 is off) and ``identity_disentanglement``. Fields with two ways to go stand where the released
    program differs from the paper or from itself; ``released`` and ``tokenar_xl`` choose."""

    layers: int = Field(ge=1, le=1024)
    heads: int = Field(ge=1, le=1024)
    kv_heads: int | None = Field(
        default=None, ge=1, le=1024, description="key and value heads, shared by groups; None: heads"
    )
    width: int = Field(ge=4, le=MAX_WIDTH)
    vocabulary: int = Field(ge=2, le=MAX_VOCABULARY)
    grid: int = Field(ge=1, le=512, description="side of a picture's token grid; a picture has grid x grid tokens")
    max_references: int = Field(default=2, ge=1, le=8)
    background: bool = Field(default=True, description="the last source block is a background; without: editing")
    text_tokens: int = Field(default=120, ge=1, le=MAX_TOKENS)
    text_width: int = Field(default=2048, ge=1, le=MAX_WIDTH)
    text_padding: Literal["attended", "masked"] = "attended"
    null_embeddings: Literal["trained", "frozen"] = Field(
        default="trained", description="frozen: what stands for a dropped picture or text stays as it was drawn"
    )
    instruct_tokens: int = Field(
        default=120, ge=0, le=MAX_TOKENS, description="learned positions after the text; 0 is off"
    )
    instruct_mode: Literal["casual", "special"] = Field(
        default="casual", description="one set of instruct tokens, or a set for each source block to choose from"
    )
    index_embedding: bool = Field(default=True, description="tell every source token which picture it belongs to")
    background_index: Literal["own", "last_reference"] = "own"
    index_on_targets: bool = Field(default=False, description="also tell it the predicted copies of the references")
    index_at_inference: bool = Field(default=True, description="False: only in training, as released")
    identity_disentanglement: bool = Field(default=True, description="predict the references again before the picture")
    source_attention: Literal["causal", "block"] = Field(
        default="causal", description="block: a source picture sees all of itself and nothing else"
    )
    rotary_layout: Literal["grid", "canvas"] = Field(default="grid", description="see positions.py; canvas: released")
    canvas_targets: int | None = Field(
        default=None, ge=1, le=100, description="target blocks that the canvas has room for; None: as many as there are"
    )
    rotary_base: float = Field(default=10000.0, gt=1, le=1e30)
    text_rotary: Literal["zero", "identity"] = "zero"
    feed_forward_multiple: int = Field(default=256, ge=1, le=MAX_WIDTH)
    feed_forward_multiplier: float | None = Field(default=None, gt=0, le=64)
    norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    tied_output: bool = Field(default=False, description="use the token table as output head; not in published weights")
    distill: Literal["dinov2", "clip"] | None = Field(default=None, description="teacher whose features are learned")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on the attention and the feed-forward output")
    text_dropout: float = Field(default=0.1, ge=0, lt=1, description="on the projected text")

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} must split into {self.heads} heads of a multiple of 4")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
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
        """N, tokens an image."""
        return self.grid * self.grid

    @property
    def source_blocks(self) -> int:
        """Pictures in a full source: the references and the background."""
        return self.max_references + self.background

    @property
    def target_blocks(self) -> int:
        """Pictures in a full target: with identity disentanglement the references, and the picture."""
        return 1 + self.max_references * self.identity_disentanglement

    @property
    def sequence(self) -> int:
        """Tokens of one sample: text, instruct tokens, source and target blocks."""
        return self.text_tokens + self.instruct_tokens + (self.source_blocks + self.target_blocks) * self.image_tokens

    @property
    def parameters(self) -> int:
        """About how many: attention and feed-forward of every layer, the tables, and what projects the text."""
        layer = 4 * self.width**2 + 3 * self.width * self.feed_forward_width
        tables = 2 * self.vocabulary + self.text_tokens + self.instruct_tokens
        return self.layers * layer + self.width * (tables + self.text_width + self.width)

    @property
    def canvas_sides(self) -> tuple[int, int]:
        """Pictures along the side of the released layout's two canvases, for sources and for targets
        (spec/tokenar.md section 2). Two sources lie side by side and have one target."""
        if self.source_blocks <= 2 or not self.background:
            return (2 if self.background else 1), 1
        return isqrt(self.source_blocks), isqrt(self.canvas_targets or self.target_blocks)

    @property
    def canvas_problem(self) -> str | None:
        """Why the released layout has no place for this model's pictures; None if it has, or if it is not used.
        The release builds such a model all the same, and fails when it runs: so does this one."""
        sources, targets = self.canvas_sides
        room = self.source_blocks if self.source_blocks == 2 == sources else sources**2
        if self.rotary_layout == "canvas" and self.source_blocks > room:
            return f"rotary_layout canvas holds {room} of {self.source_blocks} source blocks; use grid"
        if self.rotary_layout == "canvas" and self.target_blocks > targets**2:
            held = f"rotary_layout canvas holds {targets**2} of {self.target_blocks} target blocks"
            return f"{held}; use grid, or set identity_disentanglement to false"
        return None

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """Heads of the keys and values."""
        return self.kv_heads or self.heads

    @property
    def feed_forward_width(self) -> int:
        """Two thirds of four widths, times the multiplier if there is one, rounded up to ``feed_forward_multiple``
        (spec/tokenar.md section 2)."""
        inner = int(2 * (4 * self.width) / 3)
        if self.feed_forward_multiplier is not None:
            inner = int(self.feed_forward_multiplier * inner)
        return -(-inner // self.feed_forward_multiple) * self.feed_forward_multiple


class DropConfig(Settings):
    """How often a training sample loses what guidance needs to do without (spec/tokenar.md section 1)."""

    both: float = Field(default=0.05, ge=0, le=1)
    image: float = Field(default=0.05, ge=0, le=1)
    text: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _sum(self) -> DropConfig:
        if self.both + self.image + self.text > 1:
            raise ValueError("both + image + text must not exceed 1")
        return self


SIZES = {
    "B": (12, 12, 768), "L": (24, 16, 1024), "XL": (36, 20, 1280), "XXL": (48, 24, 1536), "XXXL": (48, 40, 2560),
    "1B": (22, 32, 2048), "3B": (24, 32, 3200), "7B": (32, 32, 4096),
}  # fmt: skip
"""Published sizes by name: layers, heads, width (spec/tokenar.md section 5)."""


def released(size: str = "XL") -> ModelConfig:
    """The model of the released program as its training script sets it: 512 pixels, three references and a background.

    Computes what the release computes, oddities included: pictures scattered over one canvas (QUIRK 4), the background
    under the last reference's index (QUIRK 1), null tables that are never trained (QUIRK 2), the caption's padding
    read as text, and no index embedding at inference (QUIRK 8). Sampling as released also needs
    ``SampleConfig(copies="drawn", guided_from="first")``. The numbers in brackets are those of spec/tokenar.md.
    """
    layers, heads, width = SIZES[size]
    return ModelConfig(
        layers=layers, heads=heads, width=width, vocabulary=16384, grid=32, max_references=3, rotary_layout="canvas",
        background_index="last_reference", null_embeddings="frozen", index_at_inference=False, distill="dinov2",
    )  # fmt: skip


def tokenar_xl() -> ModelConfig:
    """The same size after the paper (sections 3.1.1 to 3.1.3), with what contradicts it in the release set right:

    - a picture keeps its own grid, so that a token's neighbours are its neighbours (QUIRK 4);
    - every source picture has an index of its own, the background too (QUIRK 1): the paper gives each source a unique
      vector; and it is there at inference as in training (QUIRK 8) and on the references' copies;
    - what stands for a dropped picture or text is learned (QUIRK 2), or guidance leans on noise;
    - the caption's padding is not read as text: captions of one meaning and different length look alike.

    Text positions keep their zero rotation (QUIRK 3): LlamaGen's weights, from which training starts, were made with
    it. Instruct tokens stand after the text as in the release; the paper puts them before the references.
    """
    fixed: dict[str, object] = {
        "rotary_layout": "grid", "background_index": "own", "index_at_inference": True, "index_on_targets": True,
        "null_embeddings": "trained", "text_padding": "masked",
    }  # fmt: skip
    return ModelConfig.model_validate(released().model_dump() | fixed)
