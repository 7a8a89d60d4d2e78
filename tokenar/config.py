"""What can be set. Every setting is checked on the way in; a preset is a function that returns a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_schemas.errors import UserError


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Settings):
    """The transformer. The three parts of the method that can be switched off one by one are ``index_embedding``,
    ``instruct_tokens`` (0 is off) and ``identity_disentanglement``."""

    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    width: int = Field(ge=4)
    vocabulary: int = Field(ge=2)
    grid: int = Field(ge=1, description="side of a picture's token grid; a picture has grid x grid tokens")
    max_references: int = Field(default=2, ge=1, le=8)
    text_tokens: int = Field(default=120, ge=1)
    text_width: int = Field(default=2048, ge=1)
    instruct_tokens: int = Field(default=120, ge=0, description="learned positions after the text; 0 is off")
    index_embedding: bool = Field(default=True, description="tell every source token which picture it belongs to")
    identity_disentanglement: bool = Field(default=True, description="predict the references again before the picture")
    rotary_layout: Literal["grid"] = "grid"
    rotary_base: float = Field(default=10000.0, gt=1)
    feed_forward_multiple: int = Field(default=256, ge=1)
    norm_eps: float = Field(default=1e-5, gt=0)
    tied_output: bool = Field(default=False, description="use the token table as output head; not in published weights")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on the attention and the feed-forward output")
    text_dropout: float = Field(default=0.1, ge=0, lt=1, description="on the projected text")

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelConfig:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} must split into {self.heads} heads of a multiple of 4")
        return self

    @property
    def image_tokens(self) -> int:
        """N, tokens an image."""
        return self.grid * self.grid

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def feed_forward_width(self) -> int:
        """Two thirds of four widths, rounded up to ``feed_forward_multiple`` (spec section 2)."""
        inner = int(2 * (4 * self.width) / 3)
        return -(-inner // self.feed_forward_multiple) * self.feed_forward_multiple


class TokenizerConfig(_Settings):
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


class TextConfig(_Settings):
    """The hashed words encoder: ``tokens`` positions of ``width`` numbers."""

    tokens: int = Field(default=16, ge=1)
    width: int = Field(default=64, ge=1)


class DropConfig(_Settings):
    """How often a training sample loses what guidance needs to do without (spec section 1)."""

    both: float = Field(default=0.05, ge=0, le=1)
    image: float = Field(default=0.05, ge=0, le=1)
    text: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _sum(self) -> DropConfig:
        if self.both + self.image + self.text > 1:
            raise ValueError("both + image + text must not exceed 1")
        return self


class TrainConfig(_Settings):
    """One training run."""

    shards: str = Field(description="glob of the training shards")
    val_shards: str | None = Field(default=None, description="glob of the validation shards")
    out: str = Field(default="runs/train", description="folder of the run")
    model: ModelConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    text: TextConfig = TextConfig()
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=8, ge=1, description="samples a step, over all processes together")
    lr: float = Field(default=1e-4, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)
    variations: int = Field(default=0, ge=0, description="varied copies of every sample, see data.vary")
    drops: DropConfig = DropConfig()
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=10, ge=1)
    eval_every: int = Field(default=0, ge=0, description="steps between validations; 0: only at the end")
    save_every: int = Field(default=200, ge=1)
    keep: int = Field(default=2, ge=1, description="checkpoints kept")

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        model, tokenizer, text = self.model, self.tokenizer, self.text
        if model.grid * tokenizer.patch != tokenizer.image_size:
            raise ValueError(f"model.grid {model.grid} must be image_size / patch")
        if model.vocabulary != tokenizer.vocabulary:
            raise ValueError("model.vocabulary and tokenizer.vocabulary must be the same")
        if (model.text_tokens, model.text_width) != (text.tokens, text.width):
            raise ValueError("model.text_tokens, text_width must be text.tokens, width")
        return self


class SampleConfig(_Settings):
    """How a picture is drawn from the model's probabilities (spec section 6)."""

    seed: int = Field(default=0, ge=0)
    guidance: float = Field(default=1.0, ge=0, description="1 is off")
    temperature: float = Field(default=0.7, ge=0)
    top_k: int = Field(default=0, ge=0, description="0 is off")
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch: int = Field(default=16, ge=1)


_CPU_MODEL = ModelConfig(
    layers=2, heads=4, width=128, vocabulary=512, grid=12, max_references=2, text_tokens=16, text_width=64,
    instruct_tokens=8, rotary_base=100.0, dropout=0.0, text_dropout=0.1, tied_output=True,
)  # fmt: skip
_CPU_TRAIN: dict[str, object] = {
    "steps": 700, "batch": 4, "lr": 3e-3, "schedule": "cosine", "warmup": 20, "variations": 16,
    "log_every": 25, "eval_every": 100, "save_every": 200,
}  # fmt: skip


def cpu_small(shards: str = "", **changes: object) -> TrainConfig:
    """About two and a half minutes on two processor cores: 96-pixel pictures of 12 x 12 tokens.

    What makes so short a training possible: pictures keep their place in the rotary grid with a small base, so that
    "copy what is there" is one sharp attention pattern; the token table is also the output head, so that a copied
    token is a right answer for every token at once; and varied copies keep sixty samples from being learned by heart.
    """
    tokenizer = TokenizerConfig(image_size=96, patch=8, vocabulary=512)
    values = {"shards": shards, "model": _CPU_MODEL, "tokenizer": tokenizer, **_CPU_TRAIN}
    return with_changes(TrainConfig.model_validate(values), **changes)


PRESETS = {"cpu_small": cpu_small}


def with_changes(config: TrainConfig, **changes: object) -> TrainConfig:
    """A copy with some settings changed and everything checked again.

    A key is a field of TrainConfig or ``part__field`` for a field of a part (``model__layers=2``).
    """
    values = config.model_dump()
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field:
            values[part][field] = value
        else:
            values[part] = value
    return TrainConfig.model_validate(values)


def read_train_config(path: str) -> TrainConfig:
    """A training configuration from a JSON file."""
    try:
        return TrainConfig.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSON file of settings") from error
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first complaint of a ValidationError as one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "settings"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
