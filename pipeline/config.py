"""The whole curation in one pydantic model: what the command line, the YAML profiles and Prefect's form fill in."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from data_schemas.errors import UserError
from pipeline.identity.compare import IdentityConfig, TimmIdentityConfig
from pipeline.matting.ben2 import Ben2Config
from pipeline.matting.grabcut import GrabCutConfig
from pipeline.parts import check_name
from pipeline.planning import PlanningConfig
from pipeline.references import ReferencesConfig
from pipeline.semantics.imagenet import ImageNetConfig
from pipeline.semantics.openai_api import ApiConfig
from pipeline.semantics.transformers_vlm import TransformersConfig
from pipeline.stage import StageConfig, any_of
from pipeline.synthesis.collage import CollageConfig
from pipeline.synthesis.dreamrelation.stage import DreamRelationConfig


class OwnStageConfig(StageConfig):
    """A stage of the user's own: ``use`` is module:Class of a pipeline.stage.Stage, ``config`` its settings."""

    model_config = ConfigDict(title="own stage")

    use: str
    config: dict[str, Any] = {}


def _backend(value: Any) -> str | None:
    """Which member of a section's union a value is meant for."""
    if isinstance(value, OwnStageConfig) or (isinstance(value, dict) and "use" in value):
        return "use"
    return value.get("backend") if isinstance(value, dict) else getattr(value, "backend", None)


PICK = (Discriminator(_backend), Field(json_schema_extra=any_of))
Own = Annotated[OwnStageConfig, Tag("use")]
Synthesis = Annotated[
    Annotated[CollageConfig, Tag("collage")] | Annotated[DreamRelationConfig, Tag("dreamrelation")] | Own, *PICK
]
Matting = Annotated[Annotated[GrabCutConfig, Tag("grabcut")] | Annotated[Ben2Config, Tag("ben2")] | Own, *PICK]
Semantics = Annotated[
    Annotated[ImageNetConfig, Tag("imagenet")]
    | Annotated[TransformersConfig, Tag("transformers")]
    | Annotated[ApiConfig, Tag("openai")]
    | Own,
    *PICK,
]
Identity = Annotated[
    Annotated[IdentityConfig, Tag("efficientnet")] | Annotated[TimmIdentityConfig, Tag("timm")] | Own, *PICK
]


class DecideConfig(StageConfig):
    """Thresholds by reason code; a reason that is named in neither keeps its stage's default.

    ``thresholds`` win over those of ``thresholds_file``, a YAML file such as ``instructar calibrate`` writes.
    """

    thresholds: dict[str, float] = {}
    thresholds_file: str | None = None

    def all_thresholds(self) -> dict[str, float]:
        """Both together; UserError for a file that holds none."""
        return (read_thresholds(self.thresholds_file) if self.thresholds_file else {}) | self.thresholds


class ShardsConfig(StageConfig):
    """How the kept samples are cut into shards."""

    samples_per_shard: int = Field(64, ge=1, le=100_000)


STAGE_SECTIONS = ("synthesis", "matting", "semantics", "identity")
"""Sections that pick a backend, in the order in which their stages run."""


class CurationConfig(BaseModel):
    """One curation run. Everything has a default, so an empty config is the embedded quickstart."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "quickstart"
    root: str = Field("runs", description="Folder or bucket URL that holds the runs")
    seed: int = Field(0, ge=0, lt=2**31)
    samples: int = Field(96, ge=1, le=10_000_000, description="Samples to plan")
    part_size: int = Field(16, ge=1, le=10_000, description="Samples in a part, the unit of caching")
    workers: int = Field(2, ge=1, le=256, description="Parts made at the same time")
    references: ReferencesConfig = ReferencesConfig()
    planning: PlanningConfig = PlanningConfig()
    synthesis: Synthesis = CollageConfig()
    matting: Matting = GrabCutConfig()
    semantics: Semantics = ImageNetConfig()
    identity: Identity = IdentityConfig()
    filters: list[OwnStageConfig] = []
    decide: DecideConfig = DecideConfig()
    shards: ShardsConfig = ShardsConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_path_component(cls, name: str) -> str:
        return check_name(name)

    @property
    def run_url(self) -> str:
        return f"{self.root.rstrip('/')}/{self.name}"

    @classmethod
    def load(cls, profile: str = "embedded", file: str | None = None, overrides: list[str] | None = None) -> Self:
        """Profile, then the YAML file on top of it, then ``key.key=value`` overrides; UserError on any mistake."""
        values = _read_yaml(_profile(profile))
        if file is not None:
            values = _merge(values, _read_yaml(Path(file)))
        for override in overrides or []:
            key, equals, text = override.partition("=")
            if not equals or not key:
                raise UserError(f"--set {override}: expected key=value, such as decide.thresholds.identity_low=0.6")
            value: Any = _parse(text, f"--set {override}")
            for name in reversed(key.split(".")):
                value = {name: value}
            values = _merge(values, value)
        return cls.parse(values, file or profile)

    def on_profile(self, profile: str) -> Self:
        """The profile with what was set in this config laid on top.

        A form sends every key, touched or not: of a config that has them all, only what is not the default was meant.
        """
        given = self.model_dump(mode="json", exclude_unset=True)
        if self.model_fields_set == set(type(self).model_fields):
            changed = self.model_dump(mode="json", exclude_defaults=True)
            given = {key: given[key] if key in STAGE_SECTIONS else value for key, value in changed.items()}
        return type(self).parse(_merge(_read_yaml(_profile(profile)), given), profile)

    @classmethod
    def parse(cls, values: dict, source: str) -> Self:
        """Validate plain values; the first mistake becomes one line naming the key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"config {source}: {first_mistake(error)}") from error


def first_mistake(error: ValidationError) -> str:
    """The first of a validation error's complaints as ``key: what is wrong``."""
    mistake = error.errors()[0]
    where = [str(part) for part in mistake["loc"]]
    if where[0] in STAGE_SECTIONS and len(where) > 2:
        del where[1]  # the union's tag, which nobody wrote
    key = ".".join(where)
    if mistake["type"] == "extra_forbidden":
        return f"{key}: there is no such key; check its spelling"
    if mistake["type"] == "union_tag_invalid":
        return f"{key}.backend: {mistake['ctx']['tag']!r} does not exist; there is: {mistake['ctx']['expected_tags']}"
    if mistake["type"] == "union_tag_not_found":
        return f"{key}.backend: which one is not said; expected keys with values, backend among them"
    return f"{key}: {mistake['msg']} (given: {mistake['input']!r})"


def read_thresholds(path: str) -> dict[str, float]:
    """The thresholds of a YAML file (``thresholds: {reason: number}``); UserError if it holds anything else."""
    values = _read_yaml(Path(path))
    found = values.get("thresholds")
    plain = isinstance(found, dict) and all(type(number) in (int, float) for number in found.values())
    if found is None or not plain or len(values) > 1:
        raise UserError(f"thresholds file {path}: expected one key, thresholds, with a number for each reason")
    return {str(reason): float(number) for reason, number in found.items()}


def _profile(name: str) -> Path:
    folder = Path(str(files("pipeline") / "profiles"))
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(f"profile {name!r} does not exist; there is: {known}")
    return path


def _read_yaml(path: Path) -> dict:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read ({error})") from error
    values = _parse(text, f"config file {path}") or {}
    if not isinstance(values, dict):
        raise UserError(f"config file {path}: expected keys with values, as in pipeline/profiles/embedded.yaml")
    return values


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML ({' '.join(str(error).split())})") from error


def _merge(base: dict, over: dict) -> dict:
    """``over`` laid on ``base``, key by key, into nested keys; another backend's settings are not kept."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        if both and "backend" in value | merged[key] and _backend(value) not in (None, _backend(merged[key])):
            both = False
        merged[key] = _merge(merged[key], value) if both else value
    return merged
