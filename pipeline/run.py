"""A run: its config, the fingerprint of every stage, and the stores that hold the stages' parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_schemas.errors import UserError
from data_schemas.schema import TableSchema
from data_schemas.tables import DECIDE, PLAN, REFERENCES, SHARD_INDEX
from pipeline.backends import build_stages
from pipeline.config import CurationConfig
from pipeline.core.names import part_bounds, part_names
from pipeline.core.parts import PartStore, fingerprint
from pipeline.core.rules import resolve_rules
from pipeline.core.stage import Stage
from pipeline.planning import planning
from pipeline.references import cutouts
from pipeline.references.sources import Source

PLAN_VERSION = 2
DECIDE_VERSION = 2
SHARDS_VERSION = 2
POOL_PART = 64
"""Reference pictures in a part of the pool: about two seconds of work and a few megabytes."""


@dataclass(frozen=True)
class Run:
    """A config together with the fingerprint of every stage and the number of reference pictures."""

    config: CurationConfig
    fingerprints: tuple[tuple[str, str], ...]
    pictures: int

    def __hash__(self) -> int:  # the config holds lists, so it has no hash of its own
        return hash((self.config.run_url, self.fingerprints))

    @classmethod
    def of(cls, config: CurationConfig) -> Run:
        """The run of a config.

        Computes all fingerprints, which reads every reference picture's bytes but loads no model.
        """
        planning.chosen_relations(config.planning)  # an unknown relation raises UserError before any work
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
        """The part store of a stage."""
        schemas: dict[str, TableSchema] = {
            "references": REFERENCES, "plan": PLAN, "decide": DECIDE, "shards": SHARD_INDEX,
        }  # fmt: skip
        schema = schemas.get(stage) or self.stage(stage).schema()
        return PartStore(self.config.run_url, stage, dict(self.fingerprints)[stage], schema)

    def stages(self) -> list[Stage]:
        """The per-sample stages of this run, in order."""
        return _stages_of(self)

    def stage(self, name: str) -> Stage:
        """The per-sample stage with this name."""
        return next(stage for stage in self.stages() if stage.name == name)

    def order(self) -> list[str]:
        """The names of all stages in the order in which they run."""
        return ["references", "plan", *(s.name for s in self.stages()), "decide", "shards"]

    def pool_parts(self) -> list[str]:
        """The names of the reference pool's parts."""
        return part_names(-(-self.pictures // POOL_PART), "pool")

    def parts(self) -> list[str]:
        """The names of the plan's parts."""
        return list(self.bounds())

    def bounds(self) -> dict[str, tuple[int, int]]:
        """The plan's parts, each with the numbers of its first sample and of the one behind its last."""
        bounds = part_bounds(self.config.samples, self.config.part_size)
        return dict(zip(part_names(len(bounds)), bounds, strict=True))


def _pool_fingerprint(config: CurationConfig, sources: Sequence[Source]) -> str:
    return fingerprint(
        stage="references",
        version=cutouts.VERSION,
        config=config.references.model_dump(mode="json"),
        part_size=POOL_PART,
        sources=[[s.reference_id, s.source] for s in sources],
    )


_listed: dict[Run, list[Source]] = {}
"""The reference pictures of the run that this process fingerprinted last. Listing a pool reads all of its files."""


def pool_sources(run: Run) -> list[Source]:
    """The reference pictures of a run. Raises UserError if they have changed since the run was fingerprinted."""
    if run not in _listed:
        sources = cutouts.list_pool(run.config.references)
        if _pool_fingerprint(run.config, sources) != dict(run.fingerprints)["references"]:
            raise UserError("references.pool: its pictures changed while they were read; run it again")
        _listed.clear()
        _listed[run] = sources
    return _listed[run]


@lru_cache(maxsize=8)
def _stages_of(run: Run) -> list[Stage]:
    """The stages of a run, kept as long as the process lives, so that each model is loaded once for all parts."""
    return build_stages(run.config)
