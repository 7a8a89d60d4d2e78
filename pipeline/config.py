"""All settings of a curation in one pydantic model, filled from the command line, YAML profiles or Prefect's form."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from fsspec.core import get_filesystem_class, split_protocol
from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from data_schemas.errors import UserError
from data_schemas.io import documents
from data_schemas.io.storage import plain
from data_schemas.settings import Settings, suggest
from pipeline.core.names import LARGEST_PART, check_name
from pipeline.core.stage import StageConfig, any_of
from pipeline.identity.compare import IdentityConfig, TimmIdentityConfig
from pipeline.matting.ben2 import Ben2Config
from pipeline.matting.grabcut import GrabCutConfig
from pipeline.matting.pasted import PastedConfig
from pipeline.planning.planning import PlanningConfig
from pipeline.quality.stage import QualityConfig
from pipeline.references.cutouts import ReferencesConfig
from pipeline.semantics.imagenet import ImageNetConfig
from pipeline.semantics.openai_api import ApiConfig
from pipeline.semantics.transformers_vlm import TransformersConfig
from pipeline.synthesis.collage import CollageConfig
from pipeline.synthesis.dreamrelation.stage import DreamRelationConfig


class OwnStageConfig(StageConfig):
    """A stage that the user wrote (docs/add-a-stage.md)."""

    model_config = ConfigDict(title="own stage")

    use: str = Field(description="module:Class of your Stage; the module's folder must be on PYTHONPATH")
    config: dict[str, Any] = Field({}, description="Settings of the stage, checked by its Config")


class LeftOutConfig(StageConfig):
    """Stands for a judging stage that is not run."""

    backend: Literal["none"] = Field(
        "none", description="`none` leaves the stage out: it gives no scores and rejects nothing"
    )


def _backend(value: Any) -> str | None:
    """The tag of the union member that a section's value is meant for: its backend, or "use" for a user's own stage."""
    if isinstance(value, OwnStageConfig) or (isinstance(value, dict) and "use" in value):
        return "use"
    return value.get("backend") if isinstance(value, dict) else getattr(value, "backend", None)


PICK = (Discriminator(_backend), Field(json_schema_extra=any_of))
Own = Annotated[OwnStageConfig, Tag("use")]
LeftOut = Annotated[LeftOutConfig, Tag("none")]
Synthesis = Annotated[
    Annotated[CollageConfig, Tag("collage")] | Annotated[DreamRelationConfig, Tag("dreamrelation")] | Own, *PICK
]
Matting = Annotated[
    Annotated[GrabCutConfig, Tag("grabcut")]
    | Annotated[Ben2Config, Tag("ben2")]
    | Annotated[PastedConfig, Tag("pasted")]
    | Own,
    *PICK,
]
Semantics = Annotated[
    Annotated[ImageNetConfig, Tag("imagenet")]
    | Annotated[TransformersConfig, Tag("transformers")]
    | Annotated[ApiConfig, Tag("openai")]
    | LeftOut
    | Own,
    *PICK,
]
Identity = Annotated[
    Annotated[IdentityConfig, Tag("efficientnet")] | Annotated[TimmIdentityConfig, Tag("timm")] | LeftOut | Own, *PICK
]
Quality = Annotated[Annotated[QualityConfig, Tag("correspondence")] | LeftOut | Own, *PICK]


class DecideConfig(StageConfig):
    """Which scores reject a sample."""

    thresholds: dict[str, float] = Field(
        {}, description="Thresholds by reason code; a reason that is not listed keeps the default of its stage"
    )
    thresholds_file: str | None = Field(
        None,
        description="YAML file, as `instructar calibrate` writes it, or None; `thresholds` override its values",
    )

    def all_thresholds(self) -> dict[str, float]:
        """The thresholds of the file and of the config together. Raises UserError for a file without thresholds."""
        return (read_thresholds(self.thresholds_file) if self.thresholds_file else {}) | self.thresholds


class ShardsConfig(StageConfig):
    """How the kept samples are divided into shards.

    Samples with a planted fault that no filter caught are left out, because they are known to be wrong.
    """

    samples_per_shard: int = Field(
        64, ge=1, le=100_000, description="Samples in a shard; the last one of a split may hold fewer"
    )
    unfiltered: bool = Field(
        False,
        description="Training shards also hold what was rejected, to measure what the filters are worth",
    )


STAGE_SECTIONS = ("synthesis", "matting", "semantics", "identity", "quality")
"""Sections of the config that choose a backend, in the order in which the stages run."""


HOW = frozenset({"workers", "engine", "devices", "ray_address", "resources", "time_limit", "max_error_share"})
"""Settings that say where and how fast parts are made, and change nothing in them."""
MAX_PARTS = 1_000_000
"""Most parts of one stage. Each part is one or two files and one job."""


class Resources(Settings):
    """What an actor of a stage takes of a Ray cluster, and how many there are."""

    gpus: float = Field(0, ge=0, le=64, description="GPUs of an actor; 0.5: two actors share one; 0: none")
    cpus: float = Field(1, ge=0, le=1024, description="CPU cores of an actor, also a fraction")
    memory_gb: float | None = Field(
        None, gt=0, description="Memory of an actor, in GB of 10^9 bytes; None: Ray does not count it"
    )
    actors: int | None = Field(None, ge=1, le=10_000, description="Actors of the stage; None: as many as `workers`")


class CurationConfig(Settings):
    """All settings of one curation run. Every field has a default; the profile "embedded" is the quickstart."""

    name: str = Field(
        "quickstart", description="Name of the run and of its folder: at most 100 letters, digits, '.', '_' and '-'"
    )
    root: str = Field("runs", min_length=1, description="Folder or bucket URL that holds the runs")
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="Seed of pairs, relations, boxes and each sample's own noise, but not of the split",
    )
    samples: int = Field(96, ge=1, le=10_000_000, description="Samples to plan")
    part_size: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Samples in a part, the unit of caching; by default 16, and more in large runs",
    )
    workers: int = Field(2, ge=1, le=256, description="Parts made at the same time")
    engine: Literal["threads", "local", "ray"] = Field(
        "threads", description="Where parts are made: threads of this process, processes of this machine, a Ray cluster"
    )
    devices: list[str] | None = Field(
        None, description="GPUs of engine local, as CUDA_VISIBLE_DEVICES names them; all by default"
    )
    ray_address: str | None = Field(None, description="A Ray cluster; by default one is started on this machine")
    resources: dict[str, Resources] = Field(
        {}, description='What an actor takes of a Ray cluster, by stage; "default" is for all that are not named'
    )
    time_limit: float = Field(
        900,
        ge=0,
        allow_inf_nan=False,
        description="Most seconds of a sample in a stage; 0: no limit, as in threads",
    )
    max_error_share: float = Field(
        0.5, gt=0, le=1, description="The run stops when a larger share of a stage's samples failed"
    )
    references: ReferencesConfig = Field(ReferencesConfig(), description="Where the pictures of subjects come from")
    planning: PlanningConfig = Field(
        PlanningConfig(), description="Which subjects are paired, in which relation, and where they stand"
    )
    synthesis: Synthesis = Field(
        CollageConfig(), description="What makes the target from two references (paper, section 2.1, step 1)"
    )
    matting: Matting = Field(
        GrabCutConfig(),
        description="What divides the target into foreground and background (paper, section 2.1, step 2)",
    )
    semantics: Semantics = Field(
        ImageNetConfig(),
        description="What judges whether both subjects are there, in natural colours (paper, section 2.1, step 3)",
    )
    identity: Identity = Field(
        IdentityConfig(),
        description="What measures how similar each subject is to its reference (paper, section 2.1, step 4)",
    )
    quality: Quality = Field(
        QualityConfig(), description="What finds missing, extra, discoloured or blurred parts; not in the paper"
    )
    filters: list[OwnStageConfig] = Field([], description="Stages of your own, which run after the five above")
    decide: DecideConfig = Field(DecideConfig(), description="Thresholds by which samples are kept or rejected")
    shards: ShardsConfig = Field(ShardsConfig(), description="How kept samples are written for training")

    @field_validator("name")
    @classmethod
    def _name_is_a_path_component(cls, name: str) -> str:
        return check_name(name)

    @field_validator("root")
    @classmethod
    def _root_can_be_reached(cls, root: str) -> str:
        protocol = split_protocol(root)[0]
        if protocol is not None:
            try:
                get_filesystem_class(protocol)
            except (ImportError, ValueError) as error:  # an unknown protocol, or its package is not installed
                raise ValueError(f"{error}; give a folder, or the URL of a bucket such as s3://name/folder") from error
        return plain(root)

    @model_validator(mode="after")
    def _parts_can_be_counted(self) -> Self:
        if self.samples > MAX_PARTS * (self.part_size or LARGEST_PART):
            raise ValueError(f"{self.samples} samples make more than {MAX_PARTS} parts; raise part_size")
        return self

    @property
    def run_url(self) -> str:
        """The folder of the run, as a path or URL."""
        return f"{self.root.rstrip('/')}/{self.name}"

    def gpu_share(self, stage: str) -> float:
        """GPUs that a process of this stage has: one, or on Ray the number or fraction that ``resources`` says."""
        resources = self.resources.get(stage) or self.resources.get("default")
        return resources.gpus if self.engine == "ray" and resources and resources.gpus else 1.0

    @classmethod
    def load(
        cls,
        profile: str = "embedded",
        file: str | None = None,
        overrides: list[str] | None = None,
        given: Mapping[str, object] | None = None,
        before: dict[str, Any] | None = None,
    ) -> Self:
        """Settings from a profile, then the YAML ``file``, then ``given``, then ``overrides``; later ones win.

        ``given`` maps dotted keys to values that are used as they are. ``overrides`` are texts ``key.key=value`` whose
        values are YAML. ``before`` holds settings to start from instead of the profile's. Raises UserError for any
        mistake.
        """
        values = _read_settings(_profile(profile)) if before is None else before
        if file is not None:
            values = _merge(values, _read_settings(file))
        for key, value in (given or {}).items():
            values = _merge(values, _nested(key, value))
        for override in overrides or []:
            key, equals, text = override.partition("=")
            if not equals or not key:
                raise UserError(f"--set {override}: expected key=value, such as decide.thresholds.identity_low=0.6")
            values = _merge(values, _nested(key, documents.parse_yaml(text, f"--set {key}")))
        return cls.parse(values, f"config {file or profile}")

    def on_profile(self, profile: str) -> Self:
        """The settings of a profile, overridden by the values that were set in this config."""
        return self.laid_on(_read_settings(_profile(profile)), f"config {profile}")

    def laid_on(self, values: dict[str, Any], source: str) -> Self:
        """``values`` overridden by what was set in this config. ``source`` is named in error messages.

        Prefect's form sends every key, whether the user changed it or not. So if all keys are set, only values that
        differ from the defaults count as set.
        """
        given = self.model_dump(mode="json", exclude_unset=True)
        if self.model_fields_set == set(type(self).model_fields):
            changed = self.model_dump(mode="json", exclude_defaults=True)
            given = {key: given[key] if key in STAGE_SECTIONS else value for key, value in changed.items()}
        return type(self).parse(_merge(values, given), source)


def read_thresholds(path: str) -> dict[str, float]:
    """The thresholds of a YAML file (``thresholds: {reason: number}``). Raises UserError if it holds anything else."""
    values = _read_settings(path, "thresholds file")
    thresholds = values.get("thresholds")
    plain = isinstance(thresholds, dict) and all(type(number) in (int, float) for number in thresholds.values())
    if not plain or len(values) > 1:
        raise UserError(f"thresholds file {path}: expected one key, thresholds, with a number for each reason")
    return {str(reason): float(number) for reason, number in values["thresholds"].items()}


def _profile(name: str) -> str:
    folder = Path(str(files("pipeline") / "profiles"))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:  # also keeps out paths
        raise UserError(f"profile {name!r} does not exist; {suggest(name, known)}")
    return str(folder / f"{name}.yaml")


def _read_settings(path: str, what: str = "config file") -> dict[str, Any]:
    values = documents.read_yaml(path, f"give a {what} in YAML") or {}
    if not isinstance(values, dict):
        raise UserError(f"{what} {path}: expected keys with values, as in pipeline/profiles/embedded.yaml")
    return values


def _nested(key: str, value: object) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for the key "a.b"."""
    *outer, last = key.split(".")
    nested: dict[str, Any] = {last: value}
    for name in reversed(outer):
        nested = {name: nested}
    return nested


def _merge(base: dict, over: dict) -> dict:
    """``base`` with the values of ``over``, merged key by key at every level.

    If ``over`` chooses another backend for a section, the section's other settings in ``base`` are dropped.
    """
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        if both and "backend" in value | merged[key] and _backend(value) not in (None, _backend(merged[key])):
            both = False
        merged[key] = _merge(merged[key], value) if both else value
    return merged
