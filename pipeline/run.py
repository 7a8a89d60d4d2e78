"""A run: its config, the fingerprint of every stage, and the stores that hold the stages' parts."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_schemas.io.storage import read_facts, write_file
from data_schemas.schema import TableSchema
from data_schemas.tables import DECIDE, PLAN, REFERENCES, SHARD_INDEX
from pipeline.backends import build_stages
from pipeline.config import CurationConfig
from pipeline.core.names import part_bounds, part_names
from pipeline.core.parts import PartStore, fingerprint
from pipeline.core.rules import resolve_rules
from pipeline.core.stage import Rule, Stage
from pipeline.planning import planning
from pipeline.references import cutouts
from pipeline.references.sources import Source

PLAN_VERSION = 3
DECIDE_VERSION = 2
SHARDS_VERSION = 2
POOL_FILE = "pool.json"


@dataclass(frozen=True)
class Run:
    """A config together with the fingerprint of every stage, and the rules of ``decide`` with their stages.

    The rules are what the thresholds file said when the fingerprint was made, and go with the run wherever a part is
    made: the file may be written again while the run is at work.
    """

    config: CurationConfig
    fingerprints: tuple[tuple[str, str], ...]
    rules: tuple[tuple[str, Rule], ...]

    def __hash__(self) -> int:  # the config holds lists, so it has no hash of its own
        return hash((self.config.run_url, self.fingerprints))

    @classmethod
    def of(cls, config: CurationConfig) -> Run:
        """The run of a config. Computes all fingerprints, which reads no picture and loads no model.

        Neither the pool nor the number of samples is part of them, so that both can grow: parts tell by their input
        what they were made from.
        """
        planning.chosen_relations(config.planning)  # an unknown relation raises UserError before any work
        known = {
            "references": fingerprint(stage="references", version=cutouts.VERSION, size=config.references.size),
        }
        known["plan"] = fingerprint(
            stage="plan",
            version=PLAN_VERSION,
            config=config.planning.model_dump(mode="json"),
            shape=[config.seed, config.part_size],
            inputs=known["references"],
        )
        stages = build_stages(config)
        rules = resolve_rules(stages, config.decide.all_thresholds())
        for stage in stages:
            known[stage.name] = stage.fingerprint({name: known[name] for name in stage.reads})
        known["decide"] = fingerprint(
            stage="decide",
            version=DECIDE_VERSION,
            rules=[[name, rule.column, rule.bound, rule.threshold, rule.reason] for name, rule in rules],
            inputs={s.name: known[s.name] for s in stages},
        )
        known["shards"] = fingerprint(
            stage="shards",
            version=SHARDS_VERSION,
            config=config.shards.model_dump(mode="json"),
            inputs=known["decide"],
        )
        return cls(config, tuple(known.items()), tuple(rules))

    def store(self, stage: str) -> PartStore:
        """The part store of a stage."""
        schemas: dict[str, TableSchema] = {
            "references": REFERENCES, "plan": PLAN, "decide": DECIDE, "shards": SHARD_INDEX,
        }  # fmt: skip
        schema = schemas.get(stage) or self.stage(stage).schema()
        return PartStore(self.config.run_url, stage, dict(self.fingerprints)[stage], schema)

    def stages(self) -> list[Stage]:
        """The per-sample stages of this run, in order."""
        with _building:
            return _stages_of(self)

    def stage(self, name: str) -> Stage:
        """The per-sample stage with this name."""
        return next(stage for stage in self.stages() if stage.name == name)

    def order(self) -> list[str]:
        """The names of all stages in the order in which they run."""
        return ["references", "plan", *(s.name for s in self.stages()), "decide", "shards"]

    def pool_parts(self) -> list[str]:
        """The names of the reference pool's parts, as of the last curation; empty before the first."""
        store = self.store("references")
        return (read_facts(store.fs, f"{store.root}/{POOL_FILE}") or {}).get("parts", [])

    def set_pool_parts(self, parts: Sequence[str]) -> None:
        """Say which of the parts in the store are the pool's; others are left from pools of before."""
        store = self.store("references")
        if list(parts) != self.pool_parts():
            write_file(store.fs, f"{store.root}/{POOL_FILE}", json.dumps({"parts": list(parts)}).encode())

    def parts(self) -> list[str]:
        """The names of the plan's parts."""
        return list(self.bounds())

    def bounds(self) -> dict[str, tuple[int, int]]:
        """The plan's parts, each with the numbers of its first sample and of the one behind its last."""
        bounds = part_bounds(self.config.samples, self.config.part_size)
        return dict(zip(part_names(len(bounds)), bounds, strict=True))


_listed: dict[str, dict[str, list[Source]]] = {}
"""The reference pool that this process listed last, by its settings. Listing a pool reads all of its files."""


def list_pool(config: CurationConfig) -> dict[str, list[Source]]:
    """The reference pictures as they are now, by the part of the pool that they belong to."""
    _listed.clear()
    return pool_sources(config)


def pool_sources(config: CurationConfig) -> dict[str, list[Source]]:
    """The same, as this process listed them before."""
    settings = config.references.model_dump_json()
    if settings not in _listed:
        _listed[settings] = cutouts.in_parts(cutouts.list_pool(config.references))
    return _listed[settings]


@lru_cache(maxsize=8)
def _stages_of(run: Run) -> list[Stage]:
    """The stages of a run, kept as long as the process lives, so that each model is loaded once for all parts."""
    return build_stages(run.config)


_building = threading.Lock()
"""Held while the stages of a run are looked up: two threads that ask first would each build their own."""
