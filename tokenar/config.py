"""What can be set. Every setting is checked on the way in; a preset is a function that returns a configuration."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from data_schemas.errors import UserError
from data_schemas.io import documents
from data_schemas.settings import MAX_SEED, Settings
from tokenar.encoders.config import (
    MAX_BATCH,
    MAX_VOCABULARY,
    Folder,
    T5Config,
    TeacherConfig,
    TextConfig,
    TokenizerConfig,
    VqConfig,
    vq16,
)
from tokenar.model.config import MAX_SEQUENCE, DropConfig, ModelConfig, released, tokenar_xl

MAX_STEPS = MAX_SAMPLES = 10**9

Kind = TypeVar("Kind", bound=Settings)
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Settings):
    """One training run."""

    shards: str = Field(description="glob of the training shards, raw or from tokenar-encode")
    val_shards: str | None = Field(default=None, description="glob of the validation shards, of the same kind")
    out: Folder = Field(default="runs/train", description="folder of the run")
    start_from: str | None = Field(default=None, description="published checkpoint that training begins with")
    model: ModelConfig
    tokenizer: TokenizerConfig | VqConfig = TokenizerConfig()
    tokenizer_weights: str | None = Field(default=None, description="file of the VQ tokenizer's weights")
    text: TextConfig | T5Config = TextConfig()
    teacher: TeacherConfig | None = Field(default=None, description="whose features model.distill learns")
    distill_weight: float = Field(
        default=0.5, ge=0, le=1000, description="of the teacher's loss; the tokens' loss has 1"
    )
    variations: int = Field(
        default=0, ge=0, le=1000, description="varied copies of every sample (data.vary), from raw shards"
    )
    drops: DropConfig = DropConfig()
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    steps: int = Field(default=1000, ge=1, le=MAX_STEPS)
    batch: int = Field(default=8, ge=1, le=MAX_BATCH, description="samples a step, over all processes together")
    accumulation: int = Field(
        default=1, ge=1, le=MAX_BATCH, description="parts in which a process takes its share of a batch"
    )
    lr: float = Field(default=1e-4, gt=0, le=1e30)
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="after the warm-up; cosine and linear end at 5 %"
    )
    warmup: int = Field(default=0, ge=0, le=MAX_STEPS, description="steps of linear warm-up")
    weight_decay: float = Field(default=0.05, ge=0, le=10)
    decay_tables: bool = Field(default=False, description="let embeddings and soft prompts decay too, as released")
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0, le=1e12, description="largest norm of all gradients together")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of averaged weights; they become the model")

    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the sums; weights are float32")
    parallel: Literal["ddp", "fsdp", "hybrid"] = Field(default="ddp", description="see parallel.py")
    compile: bool = Field(default=False, description="compile the blocks")
    deterministic: bool = Field(default=True, description="the same bits every time; slower on a GPU")
    activation_checkpointing: Literal["none", "selective", "block"] = Field(
        default="none", description="recompute blocks in the backward pass; selective: all but their attention"
    )

    log_every: int = Field(default=10, ge=1, le=MAX_STEPS)
    eval_every: int = Field(default=0, ge=0, le=MAX_STEPS, description="steps between validations; 0: only at the end")
    val_samples: int | None = Field(
        default=None, ge=1, le=MAX_SAMPLES, description="validate on so many, evenly spread; None: all"
    )
    pictures_every: int = Field(default=0, ge=0, le=MAX_STEPS, description="steps between drawn samples; 0: never")
    pictures: int = Field(default=4, ge=1, le=1024, description="how many of the validation samples are drawn")
    save_every: int = Field(default=200, ge=1, le=MAX_STEPS)
    keep: int = Field(default=2, ge=1, le=10_000, description="checkpoints kept, besides the best")
    wandb: bool = Field(default=False, description="also log to Weights & Biases")
    profile: bool = Field(default=False, description="trace a few early steps to the run's folder")

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        model, tokenizer, text = self.model, self.tokenizer, self.text
        if isinstance(tokenizer, VqConfig):
            vocabulary = tokenizer.codebook_size
        else:
            vocabulary = tokenizer.vocabulary
            if model.grid * tokenizer.patch != tokenizer.image_size:
                raise ValueError(f"model.grid {model.grid} must be image_size / patch")
            if self.tokenizer_weights:
                raise ValueError("tokenizer_weights are those of a VQ tokenizer; a patch codebook is fitted")
        if model.vocabulary != vocabulary:
            raise ValueError("model.vocabulary and the tokenizer's must be the same")
        if model.text_tokens != text.tokens or (isinstance(text, TextConfig) and model.text_width != text.width):
            raise ValueError("model.text_tokens, text_width must be text.tokens, width")
        return self

    @model_validator(mode="after")
    def _can_be_trained(self) -> TrainConfig:
        model = self.model
        if (model.distill == "dinov2") != (self.teacher is not None) or model.distill == "clip":
            raise ValueError("model.distill dinov2 and teacher go together: set both or none, and no other distill")
        if model.instruct_mode != "casual" or not model.background:
            raise ValueError("shards hold samples for model.instruct_mode casual and model.background true")
        if model.canvas_problem:
            raise ValueError(f"model.{model.canvas_problem}")
        if self.pictures_every and (self.parallel != "ddp" or not self.val_shards):
            raise ValueError("pictures_every draws validation samples under parallel ddp; set val_shards, or 0")
        return self

    @property
    def image_size(self) -> int:
        """Pixels of a picture's side."""
        return self.model.grid * self.unit

    @property
    def unit(self) -> int:
        """Pixels of a token's side."""
        return self.tokenizer.reduction if isinstance(self.tokenizer, VqConfig) else self.tokenizer.patch


class SampleConfig(Settings):
    """How a picture is drawn from the model's probabilities (spec/tokenar.md section 6)."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    guidance: float = Field(default=1.0, ge=0, le=100, description="weight of the text; 1 is off")
    image_guidance: float = Field(
        default=1.0, ge=0, le=100, description="weight of the references and background; 1 is off"
    )
    guided_tokens: int | None = Field(
        default=None, ge=1, le=MAX_SEQUENCE, description="guidance for so many tokens; None: for all"
    )
    guided_from: Literal["picture", "first"] = Field(
        default="picture", description="count them from the picture's first token, or from the first one drawn"
    )
    copies: Literal["given", "drawn", "verified"] = Field(
        default="given",
        description="the references' copies before the picture: as known, drawn one by one as released, or drawn with "
        "the known ones as a draft, which comes to the same in fewer steps",
    )
    temperature: float = Field(default=0.7, ge=0, le=100, description="0 takes the most probable token")
    top_k: int = Field(default=0, ge=0, le=MAX_VOCABULARY, description="0 is off")
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch: int = Field(default=16, ge=1, le=4096)
    weights: Literal["full", "int8", "float8"] = Field(
        default="full", description="of the blocks and the head while drawing; float8 needs an H100 or newer"
    )
    cache: Literal["full", "float8"] = Field(default="full", description="how keys and values are kept")
    compile: bool | None = Field(
        default=None, description="compile the step of one token; None: on a GPU. On a CPU only many pictures repay it"
    )


_CPU_MODEL = ModelConfig(
    layers=2, heads=4, width=128, vocabulary=512, grid=12, max_references=2, text_tokens=16, text_width=64,
    instruct_tokens=8, rotary_base=100.0, dropout=0.0, text_dropout=0.1, tied_output=True,
)  # fmt: skip
_CPU_TRAIN: dict[str, object] = {
    "steps": 700, "batch": 4, "lr": 3e-3, "schedule": "cosine", "warmup": 20, "variations": 16,
    "decay_tables": True, "log_every": 25, "eval_every": 100, "save_every": 200,
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


_GPU_TRAIN: dict[str, object] = {
    "tokenizer": vq16(), "text": T5Config(), "teacher": TeacherConfig(), "precision": "bfloat16", "compile": True,
    "deterministic": False,
}  # fmt: skip


def train_released(shards: str = "", **changes: object) -> TrainConfig:
    """The run of the published script (spec/tokenar.md section 10): 32 samples a step, 50 epochs of 31 steps.

    From shards made with ``tokenar-encode --keep-padding``, as this model reads the captions' padding. Beyond the
    script, missing references are left out and not padded with grey pictures.
    """
    values = {"shards": shards, "model": released(), "steps": 1550, "batch": 32, "decay_tables": True, **_GPU_TRAIN}
    return with_changes(TrainConfig.model_validate(values), **changes)


def train_tokenar_xl(shards: str = "", **changes: object) -> TrainConfig:
    """The paper's run on InstructAR (7000 steps of 48 samples) of the repaired model, for 8 GPUs of 80 GB.

    Besides the model (see ``tokenar_xl``): a short warm-up, no decay of embeddings and soft prompts, averaged weights.
    With two references GPT-XL fits a card of 24 GB at one sample a part and ``activation_checkpointing="block"``.
    """
    values = {
        "shards": shards, "model": tokenar_xl(), "steps": 7000, "batch": 48, "accumulation": 3, "warmup": 100,
        "ema": 0.999, **_GPU_TRAIN,
    }  # fmt: skip
    return with_changes(TrainConfig.model_validate(values), **changes)


def cpu_ablation(shards: str = "", **changes: object) -> TrainConfig:
    """``cpu_small``, stopped earlier: a sweep of 24 such runs took 25 minutes on two processor cores."""
    return with_changes(cpu_small(shards, steps=300), **changes)


PRESETS = {
    "cpu_small": cpu_small,
    "cpu_ablation": cpu_ablation,
    "tokenar_xl": train_tokenar_xl,
    "released": train_released,
}


def with_changes(config: TrainConfig, /, **changes: object) -> TrainConfig:
    """A copy with some settings changed and everything checked again.

    A key is a field of TrainConfig or ``part__field`` for a field of a part (``model__layers=2``).
    """
    values = config.model_dump()
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field and not isinstance(values.get(part), dict):
            raise UserError(f"{part}.{field}: these settings have no part {part!r}; set it as a whole")
        if field:
            values[part][field] = value
        else:
            values[part] = value
    return TrainConfig.parse(values, "settings")


def read_train_config(path: str) -> TrainConfig:
    """A training configuration from a JSON file."""
    return read_settings(path, TrainConfig)


def read_settings(path: str, kind: type[Kind]) -> Kind:
    """Settings of a kind from a JSON file; UserError with the first mistake."""
    return kind.parse(documents.read_json(path, "give a JSON file of settings"), path)
