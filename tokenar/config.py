"""The settings of training and sampling, checked by pydantic, and the presets: functions that return a TrainConfig."""

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
    PatchVqConfig,
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
    """The settings of a training run."""

    shards: str = Field(description="glob of the training shards, raw or from tokenar-encode")
    also: tuple[str, ...] = Field(default=(), description="globs of further training shards, mixed with the first")
    weights: tuple[float, ...] = Field(
        default=(), description="with also: how often a sample is of each glob, in proportion; empty: by their sizes"
    )
    val_shards: str | None = Field(default=None, description="glob of the validation shards, of the same kind")
    only: str | None = Field(default=None, description="file of sample ids, one a line: the training samples to use")
    out: Folder = Field(default="runs/train", description="folder of the run")
    start_from: str | None = Field(
        default=None,
        description="published checkpoint to start from, or a model folder, whose fitted tokenizer is kept; packaged: "
        "the small model that is installed with this package",
    )
    model: ModelConfig = Field(description="sizes and parts of the transformer")
    tokenizer: PatchVqConfig | TokenizerConfig | VqConfig = Field(
        default=TokenizerConfig(),
        description="what turns images into tokens: patches or a small VQ, fitted to the samples, or LlamaGen's VQ",
    )
    tokenizer_weights: str | None = Field(
        default=None,
        description="file of the VQ tokenizer's weights, or of a fitted tokenizer (packaged: that of the packaged "
        "model), which else is fitted to the training samples",
    )
    text: TextConfig | T5Config = Field(default=TextConfig(), description="text encoder: hashed words, or a frozen T5")
    teacher: TeacherConfig | None = Field(default=None, description="network whose features model.distill learns")
    distill_weight: float = Field(
        default=0.5, ge=0, le=1000, description="weight of the teacher's loss; the cross entropy has weight 1"
    )
    clip_weight: float = Field(default=2.0, ge=0, le=1000, description="weight of CLIP's loss beside DINOv2's")
    copies_weight: float = Field(
        default=1.0, ge=0, le=1000, description="weight of a reference copy's token in the loss; a picture's has 1"
    )
    variations: int = Field(
        default=0, ge=0, le=1000, description="augmented copies of every training sample; from raw shards only"
    )
    drops: DropConfig = Field(
        default=DropConfig(), description="shares of samples that lose images or text in training, for guidance"
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="of first weights, order of samples, drops and dropout")

    steps: int = Field(default=1000, ge=1, le=MAX_STEPS, description="updates of the weights, unless epochs says it")
    epochs: int | None = Field(
        default=None, ge=1, le=10**6, description="passes over the training samples, which then say the steps"
    )
    batch: int = Field(default=8, ge=1, le=MAX_BATCH, description="samples a step, over all processes together")
    accumulation: int = Field(
        default=1, ge=1, le=MAX_BATCH, description="micro-batches into which a process cuts its share of a batch"
    )
    lr: float = Field(default=1e-4, gt=0, le=1e30, description="learning rate of AdamW after the warm-up")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="learning rate after the warm-up; cosine and linear end at 5 % of lr"
    )
    warmup: int = Field(default=0, ge=0, le=MAX_STEPS, description="steps of linear warm-up")
    weight_decay: float = Field(default=0.05, ge=0, le=10, description="of AdamW; norms and biases never decay")
    decay_tables: bool = Field(default=False, description="let embeddings and soft prompts decay too, as released")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), description="AdamW's decay of gradients and their squares")
    clip: float = Field(
        default=1.0, gt=0, le=1e12, description="largest norm of the gradients; above it they are scaled"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of a moving average of weights, which is saved as model"
    )

    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of matrix products; weights are float32"
    )
    parallel: Literal["ddp", "fsdp", "hybrid"] = Field(
        default="ddp", description="ddp: a whole model on every GPU; fsdp: a part on each; hybrid: fsdp in each machine"
    )
    compile: bool = Field(default=False, description="torch.compile the transformer blocks")
    deterministic: bool = Field(default=True, description="bit-identical results every time; slower on a GPU")
    activation_checkpointing: Literal["none", "selective", "block"] = Field(
        default="none", description="recompute blocks in the backward pass; selective: all but the attention"
    )

    log_every: int = Field(default=10, ge=1, le=MAX_STEPS, description="steps between rows of the log")
    eval_every: int = Field(default=0, ge=0, le=MAX_STEPS, description="steps between validations; 0: only at the end")
    val_samples: int | None = Field(
        default=None, ge=1, le=MAX_SAMPLES, description="samples to validate on, evenly spread; None: all"
    )
    pictures_every: int = Field(default=0, ge=0, le=MAX_STEPS, description="steps between drawn pictures; 0: never")
    pictures: int = Field(default=4, ge=1, le=1024, description="validation samples for which a picture is drawn")
    save_every: int = Field(default=200, ge=1, le=MAX_STEPS, description="steps between checkpoints")
    keep: int = Field(default=2, ge=1, le=10_000, description="newest checkpoints that are kept, besides the best")
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
        if model.vocabulary != vocabulary:
            raise ValueError("model.vocabulary and the tokenizer's must be the same")
        if model.text_tokens != text.tokens or (isinstance(text, TextConfig) and model.text_width != text.width):
            raise ValueError("model.text_tokens, text_width must be text.tokens, width")
        return self

    @model_validator(mode="after")
    def _can_be_trained(self) -> TrainConfig:
        model = self.model
        if model.distill != (self.teacher and self.teacher.kind):
            raise ValueError("model.distill and teacher.kind go together: set both to the same, or neither")
        if model.instruct_mode == "special" and (self.teacher or model.identity_disentanglement):
            raise ValueError(
                "model.instruct_mode special draws one image as the target: set model.identity_disentanglement false, "
                "and model.distill and teacher null, as shards have the teacher's features of the picture alone"
            )
        if model.canvas_problem:
            raise ValueError(f"model.{model.canvas_problem}")
        if self.pictures_every and (self.parallel != "ddp" or not self.val_shards):
            raise ValueError("pictures_every draws validation samples under parallel ddp; set val_shards, or 0")
        return self

    @model_validator(mode="after")
    def _sets_can_be_mixed(self) -> TrainConfig:
        if self.weights and (len(self.weights) != 1 + len(self.also) or not all(0 < w <= 1e6 for w in self.weights)):
            raise ValueError(f"weights: {1 + len(self.also)} globs of shards need as many weights, each above 0")
        if self.also and self.only:
            raise ValueError("only chooses samples of one glob of shards; unset it, or also")
        return self

    @property
    def every_shards(self) -> tuple[str, ...]:
        """The globs of all training shards."""
        return (self.shards, *self.also)

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels."""
        return self.model.grid * self.unit

    @property
    def unit(self) -> int:
        """Side of the square of pixels that one token stands for."""
        return self.tokenizer.reduction if isinstance(self.tokenizer, VqConfig) else self.tokenizer.patch


class SampleConfig(Settings):
    """The settings of sampling. docs/differences.md says where the published sampler does otherwise."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="sample i is drawn with seed + i unless it has its own")
    guidance: float = Field(default=1.0, ge=0, le=100, description="weight of the text; 1 is off")
    image_guidance: float = Field(
        default=1.0, ge=0, le=100, description="weight of the references and background; 1 is off"
    )
    guided_tokens: int | None = Field(
        default=None, ge=1, le=MAX_SEQUENCE, description="number of tokens drawn with guidance; None: all"
    )
    guided_from: Literal["picture", "first"] = Field(
        default="picture", description="count guided_tokens from the picture's first token, or the first drawn token"
    )
    copies: Literal["given", "drawn", "verified"] = Field(
        default="given",
        description="the tokens of the reference copies before the picture: given (those of the references), drawn "
        "(one by one, as released), or verified (drawn with the given ones as a draft: the same result in fewer steps)",
    )
    temperature: float | None = Field(
        default=None, ge=0, le=100, description="0 takes the most probable token; None: 0.7, or 0.3 with a copy head"
    )
    top_k: int = Field(default=0, ge=0, le=MAX_VOCABULARY, description="only the k likeliest tokens; 0 is off")
    top_p: float = Field(default=1.0, gt=0, le=1, description="only the likeliest tokens up to this share; 1 is off")
    batch: int = Field(default=16, ge=1, le=4096, description="samples drawn at once, each with all its seeds")
    precision: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None,
        description="of the model's weights and products, and of a T5; None: bfloat16 on a GPU, else float32, and "
        "bfloat16 for a T5",
    )
    weights: Literal["full", "int8", "float8"] = Field(
        default="full", description="format of the blocks' and the head's weights; float8 needs an H100 or newer"
    )
    cache: Literal["full", "float8"] = Field(default="full", description="format of the cached keys and values")
    compile: bool | None = Field(
        default=None, description="torch.compile the decoding step; None: on a GPU. On a CPU it pays for many pictures"
    )

    def of_model(self, model: ModelConfig) -> SampleConfig:
        """The same with the temperature that suits the model, if none is set. A model that looks tokens up is sure of
        most of them, and draws the others best at a low one (docs/identity.md)."""
        suited = 0.3 if model.copy_head else 0.7
        return self if self.temperature is not None else self.model_copy(update={"temperature": suited})


_CPU_MODEL = ModelConfig(
    layers=2, heads=4, width=128, vocabulary=512, grid=12, max_references=2, text_tokens=16, text_width=64,
    instruct_tokens=8, rotary_base=100.0, dropout=0.0, text_dropout=0.1, tied_output=True,
)  # fmt: skip
_CPU_TRAIN: dict[str, object] = {
    "steps": 700, "batch": 4, "lr": 3e-3, "schedule": "cosine", "warmup": 20, "variations": 16,
    "decay_tables": True, "log_every": 25, "eval_every": 100, "save_every": 200,
}  # fmt: skip


def cpu_small(shards: str = "", **changes: object) -> TrainConfig:
    """A small run of about two and a half minutes on two processor cores: 96-pixel pictures of 12 x 12 tokens.

    Three choices make so short a training work. Tokens at the same place of different pictures have the same rotary
    position, with a small base, so that copying from that place takes one sharp attention pattern. The output head is
    the token embedding, so that copying works for every token once it works for one. Augmented copies keep the model
    from learning the few samples by heart.
    """
    tokenizer = TokenizerConfig(image_size=96, patch=8, vocabulary=512)
    values = {"shards": shards, "model": _CPU_MODEL, "tokenizer": tokenizer, **_CPU_TRAIN}
    return with_changes(TrainConfig.model_validate(values), **changes)


_LOOK_UP: dict[str, object] = {
    "layers": 4, "grid": 24, "vocabulary": 2048, "copy_head": True, "neighbours": True, "background_in_place": True,
    "qk_norm": True, "mimetic_start": True,
}  # fmt: skip


def cpu_base(shards: str = "", **changes: object) -> TrainConfig:
    """The small model that keeps identities: 96-pixel pictures of 24 x 24 tokens that it looks up in the references.

    From nothing it takes hours on two processor cores, and minutes on a GPU (there with ``accumulation`` 1). ``make
    pretrain`` trains it so; what it made is packaged.
    """
    values = {
        "shards": shards, "model": _CPU_MODEL.model_copy(update=_LOOK_UP), "steps": 2650, "batch": 32,
        "accumulation": 8, "lr": 3e-3,
        "tokenizer": PatchVqConfig(image_size=96, patch=4, vocabulary=2048, latents=24, steps=600),
        "schedule": "cosine", "warmup": 50, "copies_weight": 0.25, "precision": "bfloat16", "log_every": 50,
        "eval_every": 250, "val_samples": 32, "save_every": 50,
    }  # fmt: skip
    return with_changes(TrainConfig.model_validate(values), **changes)


def cpu_quick(shards: str = "", **changes: object) -> TrainConfig:
    """``cpu_base`` from the packaged start, for two minutes on two processor cores."""
    few: dict[str, object] = {
        "start_from": "packaged", "steps": 60, "batch": 4, "accumulation": 1, "lr": 3e-4, "warmup": 10,
        "precision": "float32", "log_every": 10, "eval_every": 30, "val_samples": None,
    }  # fmt: skip
    return with_changes(cpu_base(shards), **(few | changes))


_GPU_TRAIN: dict[str, object] = {
    "tokenizer": vq16(), "text": T5Config(), "teacher": TeacherConfig(), "precision": "bfloat16", "compile": True,
    "deterministic": False,
}  # fmt: skip


def train_released(shards: str = "", **changes: object) -> TrainConfig:
    """The run of the published training script: 32 samples a step, 50 epochs of 31 steps.

    Needs shards made with ``tokenar-encode --keep-padding``, because this model reads the captions' padding. Unlike the
    script, it leaves missing references out instead of filling in grey pictures (docs/differences.md).
    """
    values = {"shards": shards, "model": released(), "steps": 1550, "batch": 32, "decay_tables": True, **_GPU_TRAIN}
    return with_changes(TrainConfig.model_validate(values), **changes)


def train_tokenar_xl(shards: str = "", **changes: object) -> TrainConfig:
    """The paper's run on InstructAR (appendix B: 7000 steps, 6 samples on each of 8 GPUs) with the corrected model.

    For 8 GPUs of 80 GB. Besides the model (see ``tokenar_xl``) it differs from the published script in a short warm-up,
    no weight decay of embeddings and soft prompts, and averaged weights. With two references GPT-XL fits on a GPU of
    24 GB with one sample a micro-batch and ``activation_checkpointing="block"``.
    """
    values = {
        "shards": shards, "model": tokenar_xl(), "steps": 7000, "batch": 48, "accumulation": 3, "warmup": 100,
        "ema": 0.999, **_GPU_TRAIN,
    }  # fmt: skip
    return with_changes(TrainConfig.model_validate(values), **changes)


def train_single_subject(shards: str = "", **changes: object) -> TrainConfig:
    """The paper's run on SubjectSpatial200K (appendix B): ``train_tokenar_xl`` with 10,000 steps and one reference.

    Identity disentanglement then predicts that reference before the picture. docs/folders.md makes the shards.
    """
    return with_changes(train_tokenar_xl(shards), **({"model__max_references": 1, "steps": 10_000} | changes))


def cpu_ablation(shards: str = "", **changes: object) -> TrainConfig:
    """``cpu_base`` from nothing on 48-pixel pictures of 12 x 12 tokens, which it learns to look up in two minutes."""
    small: dict[str, object] = {
        "model__layers": 3, "model__grid": 12, "tokenizer__image_size": 48, "tokenizer_weights": "packaged",
        "steps": 600, "batch": 4, "accumulation": 1, "warmup": 20, "precision": "float32", "log_every": 50,
        "eval_every": 0, "val_samples": None, "save_every": 600,
    }  # fmt: skip
    return with_changes(cpu_base(shards), **(small | changes))


PRESETS = {
    "cpu_small": cpu_small, "cpu_base": cpu_base, "cpu_quick": cpu_quick, "cpu_ablation": cpu_ablation,
    "tokenar_xl": train_tokenar_xl, "single_subject": train_single_subject, "released": train_released,
}  # fmt: skip


def with_changes(config: TrainConfig, /, **changes: object) -> TrainConfig:
    """A copy with some settings changed, checked again as a whole.

    A key is a field of TrainConfig, or ``part__field`` for a field of nested settings: ``model__layers=2``.
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


def read_settings(path: str, kind: type[Kind]) -> Kind:
    """Settings of class ``kind`` from a JSON file. UserError with the first mistake."""
    return kind.parse(documents.read_json(path, "give a JSON file of settings"), path)
