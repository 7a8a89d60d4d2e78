"""The stages that a config names: the backends of this project and stages that users wrote."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from pydantic import ValidationError

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from data_schemas.schema import Column
from data_schemas.settings import first_mistake, suggest
from pipeline.config import STAGE_SECTIONS, CurationConfig, LeftOutConfig, OwnStageConfig
from pipeline.core.names import check_name
from pipeline.core.stage import Stage, StageConfig
from pipeline.identity.compare import Identity, TimmIdentity
from pipeline.matting.ben2 import Ben2
from pipeline.matting.grabcut import GrabCut
from pipeline.matting.pasted import Pasted
from pipeline.quality.stage import Quality
from pipeline.semantics.imagenet import ImageNetJudge
from pipeline.semantics.openai_api import ApiJudge
from pipeline.semantics.transformers_vlm import TransformersJudge
from pipeline.synthesis.collage import Collage
from pipeline.synthesis.dreamrelation.stage import DreamRelation

BACKENDS: tuple[type[Stage], ...] = (
    Collage, DreamRelation, GrabCut, Ben2, Pasted, ImageNetJudge, TransformersJudge, ApiJudge, Identity,
    TimmIdentity, Quality,
)  # fmt: skip
"""The stages that a config can choose with ``backend``. Each is found by the class of its settings."""


def build_stages(config: CurationConfig) -> list[Stage]:
    """The per-sample stages in order: synthesis, matting, semantics, identity, quality, then the user's filters. Of the
    three that judge, those with the backend "none" are left out.

    Raises UserError for a user's stage that cannot be used.
    """
    stages: list[Stage] = []
    for section in STAGE_SECTIONS:
        settings = getattr(config, section)
        if isinstance(settings, LeftOutConfig):
            continue
        if isinstance(settings, OwnStageConfig):
            stage = _own_stage(section, settings, ["references", "plan", *(s.name for s in stages)])
            if stage.name != section:
                raise UserError(f"{section}.use {settings.use}: it is named {stage.name!r}; name it {section!r}")
            stages.append(stage)
        else:
            stages.append(next(b for b in BACKENDS if b.Config is type(settings))(settings))
    taken = {*STAGE_SECTIONS, "references", "plan", "decide", "shards", "report", "training"}
    for entry in config.filters:
        stage = _own_stage("filter", entry, ["references", "plan", *(s.name for s in stages)])
        if stage.name in taken:
            raise UserError(f"filter {entry.use}: a stage named {stage.name!r} exists already; rename it")
        taken.add(stage.name)
        stages.append(stage)
    return stages


def own_stages(config: CurationConfig) -> list[str]:
    """The module:Class of every stage that a user wrote."""
    sections = [getattr(config, section) for section in STAGE_SECTIONS]
    return [entry.use for entry in (*sections, *config.filters) if isinstance(entry, OwnStageConfig)]


def _own_stage(what: str, entry: OwnStageConfig, before: Sequence[str]) -> Stage:
    """A stage that a user wrote, which may read the stages named in ``before``.

    Importing and constructing it runs the user's code, which may raise anything, even SystemExit. All of it becomes a
    UserError.
    """
    module, colon, name = entry.use.partition(":")
    try:
        stage_class = getattr(importlib.import_module(module), name) if colon else None
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {one_line(error, 300)}"
        raise UserError(f"{what} {entry.use!r} cannot be imported ({why}); is its folder on PYTHONPATH?") from error
    if not (isinstance(stage_class, type) and issubclass(stage_class, Stage)):
        raise UserError(f"{what} {entry.use!r}: expected module:Class of a pipeline.Stage")
    try:
        stage = stage_class(stage_class.Config(**entry.config))
        _check_stage(stage, before)
    except ValidationError as error:
        raise UserError(f"{what} {entry.use!r}: {first_mistake(error, stage_class.Config)}") from error
    except UserError as error:
        raise UserError(f"{what} {entry.use!r}: {error}") from error
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {one_line(error, 300)}"
        raise UserError(f"{what} {entry.use!r} cannot be made ({why}); mend its class") from error
    return stage


def _check_stage(stage: Stage, before: Sequence[str]) -> None:
    """Raise UserError unless a user's stage sets all that docs/add-a-stage.md describes."""
    if not isinstance(stage.config, StageConfig):
        raise UserError("its Config is no pipeline.StageConfig; derive it from that")
    if not isinstance(getattr(stage, "name", None), str):
        raise UserError("it has no name; set the class variable name")
    check_name(stage.name)
    columns = getattr(stage, "columns", None)
    if not (isinstance(columns, tuple | list) and all(isinstance(column, Column) for column in columns)):
        raise UserError("it has no columns; set the class variable columns to the Columns that it scores")
    known = [column.name for column in columns]
    for rule in stage.rules:
        if rule.column not in known:
            raise UserError(f"rule {rule.reason}: no column {rule.column!r}; {suggest(rule.column, known)}")
    for name in stage.reads:
        if name not in before:
            raise UserError(f"it reads {name!r}, which is no stage before it; {suggest(name, before)}")
    if "plan" not in stage.reads:
        raise UserError(f"it reads {', '.join(stage.reads) or 'nothing'}; add 'plan' to them, which names the samples")
