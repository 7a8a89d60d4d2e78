"""Single samples of a run for its pages: what every stage said of one, and its pictures.

Parts are read when they are asked for, so a run that is at work, or half made, or large, can be looked at: what is
there is told, and what is not, too.
"""

from __future__ import annotations

import datetime
import math
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_schemas.io.storage import Unreadable
from data_schemas.io.text import one_line
from pipeline.core.parts import Part, PartStore
from pipeline.dataset.frames.run_columns import part_stamps
from pipeline.jobs import cutout_reader, pool_digest
from pipeline.run import Run

PICTURES = ("reference_0", "reference_1", "target", "foreground", "background", "alpha")
LONGEST = 20_000
"""Most characters of a text that are shown."""
Row = dict[str, Any]


class Samples:
    """The samples of a run by id. It changes nothing, and sees what changes."""

    def __init__(self, run: Run):
        self.run = run
        self.rules = run.rules
        self._read = lru_cache(maxsize=24)(self._part)
        self._ids = lru_cache(maxsize=8192)(self._ids_of)
        self._parts = lru_cache(maxsize=1)(self._parts_of)
        self._opened = lru_cache(maxsize=24)(self._pictures)

    def part_of(self) -> dict[str, str]:
        """Every planned sample's part, in the order of the plan; of parts that are not planned yet none."""
        there = part_stamps(self.run.store("plan"))
        return self._parts(tuple((part, there.get(part, "")) for part in self.run.parts()))

    def row(self, stage: str, part: str, sample_id: str) -> Row | None:
        """A sample's row of a stage, as plain values; None if that part is not made, or not of the plan that has it."""
        found = self.part(stage, part)
        at = -1 if found is None else pc.index(found.table["sample_id"], sample_id).as_py()
        if found is None or at < 0:
            return None
        return {name: plain(value) for name, value in found.table.slice(at, 1).to_pylist()[0].items()}

    def part(self, stage: str, part: str) -> Part | None:
        """A part of a stage; None if it is not made."""
        return self._read(stage, part, self._stamp(stage, part))

    def story(self, sample_id: str, part: str) -> Row:
        """All that is known of a sample: plan, the rows of all stages, rules, pictures.

        ``stages`` has, for each, whether it ``made`` a row, its ``row``, and its ``fingerprint``. ``rules`` has each
        rule with its ``score`` and ``state``: "pass", "fail", or "unknown" without a score. ``pictures`` tells which of
        PICTURES there are.
        """
        rows = {stage.name: self.row(stage.name, part, sample_id) for stage in self.run.stages()}
        prints = dict(self.run.fingerprints)
        plan = self.row("plan", part, sample_id)
        return {
            "sample_id": sample_id,
            "part": part,
            "plan": plan,
            "stages": [
                {"name": name, "made": row is not None, "row": row, "fingerprint": prints[name]}
                for name, row in rows.items()
            ],
            "decide": self.row("decide", part, sample_id),
            "rules": [self._judged(stage, rule, rows[stage]) for stage, rule in self.rules],
            "pictures": {name: self.picture(sample_id, part, name) is not None for name in PICTURES},
        }

    def _judged(self, stage: str, rule: Any, row: Mapping[str, Any] | None) -> Row:
        score = (row or {}).get(rule.column)
        known = isinstance(score, int | float)
        return {
            "stage": stage, "reason": rule.reason, "column": rule.column, "bound": rule.bound,
            "threshold": rule.threshold, "meaning": rule.meaning, "score": score if known else None,
            "state": ("pass" if rule.passes(score) else "fail") if known else "unknown",
        }  # fmt: skip

    def picture(self, sample_id: str, part: str, name: str) -> bytes | None:
        """The PNG of one of PICTURES; None if it was not made. References are cut-outs with transparency."""
        if name.startswith("reference_"):
            made = self._files("synthesis", part).get(sample_id, {})
            if f"{name}.png" in made:  # as pasted
                return made[f"{name}.png"]
            plan = self.row("plan", part, sample_id)
            return None if plan is None else self._reference(plan[f"{name}_id"])
        return self._files("synthesis" if name == "target" else "matting", part).get(sample_id, {}).get(f"{name}.png")

    def _files(self, stage: str, part: str) -> Any:
        return self._opened(stage, part, self._stamp(stage, part))

    def _pictures(self, stage: str, part: str, stamp: str) -> Any:
        found = self._read(stage, part, stamp)
        store = self.run.store(stage)
        return {} if found is None else _BySample(store, part, found)

    def _reference(self, reference_id: str) -> bytes | None:
        try:
            return cutout_reader(self.run, pool_digest(self.run))(reference_id, "cutout.png")
        except KeyError:  # the picture is no longer in the pool
            return None

    def _part(self, stage: str, part: str, stamp: str) -> Part | None:
        return self.run.store(stage).read(part) if stamp else None

    def _parts_of(self, stamps: tuple[tuple[str, str], ...]) -> dict[str, str]:
        return {i: part for part, stamp in stamps for i in self._ids(part, stamp)}

    def _ids_of(self, part: str, stamp: str) -> tuple[str, ...]:
        if not stamp:
            return ()
        store = self.run.store("plan")
        with store.fs.open(store.path(part, "parquet"), "rb") as file, pq.ParquetFile(file) as table:
            return tuple(table.read(["sample_id"]).column(0).to_pylist())

    def _stamp(self, stage: str, part: str) -> str:
        """What changes when a part is written; empty if it is not there."""
        store = self.run.store(stage)
        try:
            return str(store.fs.ukey(store.path(part, "parquet")))
        except (FileNotFoundError, Unreadable):
            return ""


class _BySample(Mapping[str, Mapping[str, bytes]]):
    """The pictures of a part by sample."""

    def __init__(self, store: PartStore, part: str, whole: Part):
        self._pictures = store.pictures(part, whole)

    def __getitem__(self, sample_id: str) -> Mapping[str, bytes]:
        return self._pictures.of(sample_id)

    def __iter__(self) -> Any:
        return iter(self._pictures.entries)

    def __len__(self) -> int:
        return len(self._pictures.entries)


def plain(value: Any) -> Any:
    """A value of a table as JSON has it: texts without control and direction marks, no NaN, times as text."""
    if isinstance(value, str):
        return one_line(value, LONGEST)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"{len(value)} bytes, {zlib.crc32(value):08x}"
    return value.item() if isinstance(value, np.generic) else value
