"""What a run is: a config, the fingerprint of each stage under it, and where each stage's parts are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
from pydantic import ValidationError

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from data_schemas.schema import Column, TableSchema
from data_schemas.settings import first_mistake, suggest
from data_schemas.tables import DECIDE, PLAN, REFERENCES, SHARD_INDEX
from pipeline.config import STAGE_SECTIONS, CurationConfig, OwnStageConfig
from pipeline.core.parts import Part, PartPictures, PartStore, check_name, fingerprint, join_digests, part_names
from pipeline.core.rules import resolve_rules
from pipeline.core.stage import Stage, StageConfig
from pipeline.identity.compare import Identity, TimmIdentity
from pipeline.matting.ben2 import Ben2
from pipeline.matting.grabcut import GrabCut
from pipeline.planning import planning
from pipeline.references import cutouts
from pipeline.references.pools import Source
from pipeline.semantics.imagenet import ImageNetJudge
from pipeline.semantics.openai_api import ApiJudge
from pipeline.semantics.transformers_vlm import TransformersJudge
from pipeline.synthesis.collage import Collage
from pipeline.synthesis.dreamrelation.stage import DreamRelation

PLAN_VERSION = 1
DECIDE_VERSION = 2
SHARDS_VERSION = 1
POOL_PART = 64
"""Reference pictures in a part of the pool: some two seconds of work, and a few megabytes."""


@dataclass(frozen=True)
class Run:
    """A config, the fingerprint of each stage under it, and the number of reference pictures; all else follows."""

    config: CurationConfig
    fingerprints: tuple[tuple[str, str], ...]
    pictures: int

    def __hash__(self) -> int:  # the config holds lists and cannot be hashed itself
        return hash((self.config.run_url, self.fingerprints))

    @classmethod
    def of(cls, config: CurationConfig) -> Run:
        """Fingerprint every stage. Reads the reference pool's files (for their digests), loads no model."""
        planning.chosen_relations(config.planning)  # a relation that does not exist fails here, before any work
        sources = cutouts.list_pool(config.references)
        known = {"references": _pool_fingerprint(config, sources)}
        known["plan"] = fingerprint(
            stage="plan",
            version=PLAN_VERSION,
            config=config.planning.model_dump(mode="json"),
            shape=[config.samples, config.seed, config.part_size],
            inputs=known["references"],
        )
        stages = build_stages(config)
        for stage in stages:
            known[stage.name] = stage.fingerprint({name: known[name] for name in stage.reads})
        known["decide"] = fingerprint(
            stage="decide",
            version=DECIDE_VERSION,
            rules=[[name, rule.column, rule.bound, rule.threshold, rule.reason]
                   for name, rule in resolve_rules(stages, config.decide.all_thresholds())],
            inputs={s.name: known[s.name] for s in stages},
        )  # fmt: skip
        known["shards"] = fingerprint(
            stage="shards",
            version=SHARDS_VERSION,
            config=config.shards.model_dump(mode="json"),
            inputs=known["decide"],
        )
        run = cls(config, tuple(known.items()), len(sources))
        _listed.clear()
        _listed[run] = sources
        return run

    def store(self, stage: str) -> PartStore:
        schemas: dict[str, TableSchema] = {
            "references": REFERENCES, "plan": PLAN, "decide": DECIDE, "shards": SHARD_INDEX,
        }  # fmt: skip
        schema = schemas.get(stage) or self.stage(stage).schema()
        return PartStore(self.config.run_url, stage, dict(self.fingerprints)[stage], schema)

    def stages(self) -> list[Stage]:
        return _stages_of(self)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages() if stage.name == name)

    def order(self) -> list[str]:
        """Every stage's name, first to last."""
        return ["references", "plan", *(s.name for s in self.stages()), "decide", "shards"]

    def pool_parts(self) -> list[str]:
        """Parts of the reference pool, by pictures in the pool's order."""
        return part_names(-(-self.pictures // POOL_PART), "pool")

    def parts(self) -> list[str]:
        return part_names(-(-self.config.samples // self.config.part_size))


def _pool_fingerprint(config: CurationConfig, sources: Sequence[Source]) -> str:
    return fingerprint(
        stage="references",
        version=cutouts.VERSION,
        config=config.references.model_dump(mode="json"),
        part_size=POOL_PART,
        sources=[[s.reference_id, s.source] for s in sources],
    )


_listed: dict[Run, list[Source]] = {}
"""The pictures of the run that this process fingerprinted last: listing a pool reads all of its files."""


def pool_sources(run: Run) -> list[Source]:
    """The pictures of the run's pools as they were when it was fingerprinted; UserError if they are others now."""
    if run not in _listed:
        sources = cutouts.list_pool(run.config.references)
        if _pool_fingerprint(run.config, sources) != dict(run.fingerprints)["references"]:
            raise UserError("references.pool: its pictures changed while they were read; run it again")
        _listed.clear()
        _listed[run] = sources
    return _listed[run]


BACKENDS: tuple[type[Stage], ...] = (
    Collage, DreamRelation, GrabCut, Ben2, ImageNetJudge, TransformersJudge, ApiJudge, Identity, TimmIdentity,
)  # fmt: skip
"""The stages that a config can name by ``backend``; each is known by the class of its config."""


def build_stages(config: CurationConfig) -> list[Stage]:
    """The per-sample stages in order: synthesis, matting, semantics, identity, then the user's filters."""
    stages: list[Stage] = []
    for section in STAGE_SECTIONS:
        settings = getattr(config, section)
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


def _own_stage(what: str, entry: OwnStageConfig, before: Sequence[str]) -> Stage:
    """A stage of the user's own, which may read those ``before`` it; UserError for whatever is wrong with it.

    Its code runs here, so anything may be raised, SystemExit included.
    """
    module, colon, name = entry.use.partition(":")
    try:
        found = getattr(importlib.import_module(module), name) if colon else None
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {one_line(error, 300)}"
        raise UserError(f"{what} {entry.use!r} cannot be imported ({why}); is its folder on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise UserError(f"{what} {entry.use!r}: expected module:Class of a pipeline.stage.Stage")
    try:
        stage = found(found.Config(**entry.config))
        _check_stage(stage, before)
    except ValidationError as error:
        raise UserError(f"{what} {entry.use!r}: {first_mistake(error, found.Config)}") from error
    except UserError as error:
        raise UserError(f"{what} {entry.use!r}: {error}") from error
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {one_line(error, 300)}"
        raise UserError(f"{what} {entry.use!r} cannot be made ({why}); mend its class") from error
    return stage


def _check_stage(stage: Stage, before: Sequence[str]) -> None:
    """UserError unless a stage says what it is, as docs/add-a-stage.md shows."""
    if not isinstance(stage.config, StageConfig):
        raise UserError("its Config is no pipeline.stage.StageConfig; derive it from that")
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


@lru_cache(maxsize=8)
def _stages_of(run: Run) -> list[Stage]:
    """Kept for the life of the process, so that a model is loaded once however many parts are made."""
    return build_stages(run.config)


@dataclass(frozen=True)
class PartJob:
    """One part to be made, or found whole.

    ``made_from`` is the digest of everything it reads, ``shared`` of what all parts of the stage read (the reference
    pool, or every decision): what a process may keep between parts is kept under it.
    """

    run: Run
    stage: str
    part: str
    made_from: str
    shared: str
    force: bool = False
    retry_errors: bool = False

    def may_keep(self, part: Part | None) -> bool:
        """May this part, as read, stay: is it whole, not asked for again, and without errors to retry?"""
        return part is not None and not self.force and not (self.retry_errors and _has_errors(part))

    def whole(self) -> bool:
        """Is the part on disk, undamaged, made from this input, and not asked for again?"""
        return self.may_keep(self.run.store(self.stage).read(self.part, self.made_from))


def _has_errors(part: Part) -> bool:
    return "status" in part.table.column_names and "error" in part.table.column("status").to_pylist()


def need_part(run: Run, stage: str, part: str) -> Part:
    found = run.store(stage).read(part)
    if found is None:
        raise UserError(f"{run.store(stage).url(part, 'parquet')} is missing or damaged; run the curation again")
    return found


def read_all(run: Run, stage: str) -> pa.Table:
    """All parts of a stage in plan order, as one table."""
    return pa.concat_tables([need_part(run, stage, part).table.replace_schema_metadata() for part in run.parts()])


def pool_rows(run: Run) -> list[dict]:
    """The row of every reference picture, in the pool's order; one that shows what an earlier one shows is an error."""
    rows = [row for part in run.pool_parts() for row in need_part(run, "references", part).rows()]
    return cutouts.mark_duplicates(rows)


def pool_digest(run: Run) -> str:
    """What tells the reference pool as it was made from others."""
    return join_digests(need_part(run, "references", part).digest for part in run.pool_parts())


@lru_cache(maxsize=2)
def cutout_reader(run: Run, pool: str) -> Callable[[str, str], bytes]:
    """Reads a picture of a reference by its id and the picture's name; ``pool`` tells one pool from the next."""
    store = run.store("references")
    places: dict[str, PartPictures] = {}
    for part in run.pool_parts():
        pictures = store.pictures(part, need_part(run, "references", part))
        places |= dict.fromkeys(pictures.places, pictures)
    return lambda reference_id, name: places[reference_id].read(reference_id, name)
