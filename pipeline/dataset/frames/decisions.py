"""What other thresholds, or another run, would decide: from stored scores, without a model.

The rules are applied as ``pipeline/core/rules.py`` applies them, to whole columns at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_schemas.errors import UserError
from data_schemas.settings import suggest
from data_schemas.tables import DECISIONS
from pipeline.core.rules import outcomes, resolve_rules
from pipeline.core.stage import Rule
from pipeline.dataset.frames.columns import FIRST, Columns, DatasetColumns, Standing, score_name
from pipeline.dataset.frames.run_columns import RunColumns

NOT_PLANNED = "not planned"
CHANGES = ("enters", "leaves", "otherwise", "same")
"""Kept now and not before; kept before and not now; decided otherwise, but kept in neither; the same."""


@dataclass(frozen=True)
class Decided:
    """The samples of columns as rules decide them: ``decisions`` has one of DECISIONS for each, or None if it is not
    scored yet, ``broken`` [R, N] whether each rule is broken by each sample."""

    rules: list[Rule]
    decisions: np.ndarray
    broken: np.ndarray
    failed: np.ndarray


def decided(columns: Columns, rules: Sequence[tuple[str, Rule]] | None = None) -> Decided:
    """All samples under ``rules``, (stage, rule) each; by default under the columns' own.

    Without rules a published dataset has the decisions that it was published with: it may tell no rules.
    """
    as_stored = rules is None and isinstance(columns, DatasetColumns)
    rules = columns.rules if rules is None else rules
    names = [score_name(columns, stage, rule.column) for stage, rule in rules]
    columns.load(names)
    standing = columns.standing()
    scores = [
        columns.column(name).to_numpy() if columns.column(name).null_count == 0
        else pc.fill_null(pc.cast(columns.column(name), pa.float64()), np.nan).to_numpy()
        for name in names
    ]  # fmt: skip
    plain = [rule for _, rule in rules]
    decisions, broken = outcomes([own.astype(float) for own in scores], plain, standing.failed, standing.verdicts)
    known = standing.scored | standing.failed
    decisions[~known] = None
    if as_stored:
        decisions = stored(columns)
    return Decided(plain, decisions, broken & known, standing.failed)


def rules_with(columns: Columns, thresholds: Mapping[str, float]) -> list[tuple[str, Rule]]:
    """The columns' rules with other thresholds, by reason. Raises UserError for a reason that no rule has, and for a
    threshold that ``decide.thresholds`` would not take."""
    if isinstance(columns, RunColumns):
        resolve_rules(columns.run.stages(), thresholds)  # raises
    else:
        known = {rule.reason for _, rule in columns.rules}
        for reason in thresholds:
            if reason not in known:
                raise UserError(f"{reason}: no such reason; {suggest(reason, sorted(known))}")
    return [(stage, replace(r, threshold=thresholds.get(r.reason, r.threshold))) for stage, r in columns.rules]


def counts(decisions: np.ndarray) -> dict[str, int]:
    """How many samples have each decision; "not decided" for those that have none yet."""
    found = {name: int((decisions == name).sum()) for name in DECISIONS}
    rest = len(decisions) - sum(found.values())
    return found | ({"not decided": rest} if rest else {})


def funnel(found: Decided, rows: np.ndarray | None = None) -> list[dict[str, Any]]:
    """What is left of the samples after each rule, in their order: ``step``, ``left``; and of each rule how many
    samples break it (``breaks``) and how many break it alone (``alone``).

    The last step is "kept": reviewers' verdicts and missing scores count there.
    """
    rows = np.arange(len(found.decisions)) if rows is None else rows
    decisions, broken = found.decisions[rows], found.broken[:, rows]
    left = (decisions != "error") & (decisions != None)  # noqa: E711  # element by element
    alone = broken.sum(axis=0) == 1
    lines: list[dict[str, Any]] = [
        {"step": "planned", "left": len(rows)},
        {"step": "scored without error", "left": int(left.sum())},
    ]
    for rule, own in zip(found.rules, broken, strict=True):
        left &= ~own
        lines.append(
            {"step": rule.reason, "left": int(left.sum()), "breaks": int(own.sum()), "alone": int((own & alone).sum())}
        )
    return [*lines, {"step": "kept", "left": int((decisions == "kept").sum())}]


def change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """One of CHANGES for each sample; None where either has not decided yet."""
    was, now = before == "kept", after == "kept"
    told = np.where(before == after, "same", "otherwise").astype(object)
    told[now & ~was] = "enters"
    told[was & ~now] = "leaves"
    told[(before == None) | (after == None)] = None  # noqa: E711
    return told


def transitions(before: np.ndarray, after: np.ndarray) -> list[dict[str, Any]]:
    """How many samples went from each decision to each other one, most first."""
    pairs = _pairs(before, after)
    lines = [{"was": was, "is": now, "count": count} for (was, now), count in pairs.items() if was != now]
    return sorted(lines, key=lambda line: (-line["count"], str(line["was"]), str(line["is"])))


def _pairs(before: np.ndarray, after: np.ndarray) -> dict[tuple[Any, Any], int]:
    sides = [pa.array(side, pa.string()) for side in (before, after)]
    table = pa.table({"was": sides[0], "is": sides[1]}).group_by(["was", "is"]).aggregate([([], "count_all")])
    return {(row["was"], row["is"]): row["count_all"] for row in table.to_pylist()}


def decisions_in(other: Columns, decisions: np.ndarray, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The decisions of another run for these samples, NOT_PLANNED for those that it does not have; and the rows of the
    samples that it has alone."""
    theirs = other.column(FIRST).combine_chunks()
    found = pc.fill_null(pc.index_in(ids, value_set=theirs), -1).to_numpy()
    alone = np.ones(len(theirs), dtype=bool)
    alone[found[found >= 0]] = False
    if not len(theirs):
        return np.full(len(ids), NOT_PLANNED, dtype=object), np.flatnonzero(alone)
    return np.where(found >= 0, decisions[found], NOT_PLANNED).astype(object), np.flatnonzero(alone)


class Compared:
    """Columns with three more: the decisions ``before`` and ``after``, and the ``change``, one of CHANGES.

    ``base`` are the columns without these.
    """

    def __init__(self, columns: Columns, before: np.ndarray, after: np.ndarray):
        self.rules = columns.rules
        self.base = columns
        given = {"before": before, "after": after, "change": change(before, after)}
        self._added = {name: pa.chunked_array([pa.array(own, pa.string())]) for name, own in given.items()}
        self.fields = columns.fields | {name: pa.field(name, pa.string(), True, ADDED[name]) for name in given}

    def __len__(self) -> int:
        return len(self.base)

    def load(self, names: Iterable[str]) -> None:
        """Read these columns at once."""
        self.base.load(name for name in names if name not in self._added)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column's values, one for each sample. Raises UserError if there is no such column."""
        return self._added[name] if name in self._added else self.base.column(name)

    def standing(self) -> Standing:
        """That of the columns."""
        return self.base.standing()


ADDED = {
    "before": {"meaning": "The decision before, in the comparison.", "unit": "code"},
    "after": {"meaning": "The decision after, in the comparison.", "unit": "code"},
    "change": {"meaning": "enters or leaves what is kept, is decided otherwise, or the same.", "unit": "code"},
}
"""What the columns of a comparison mean."""


def stored(columns: Columns) -> np.ndarray:
    """The decisions as the columns have them; None where none was made yet."""
    return np.array(columns.column("decision").to_pylist(), dtype=object)
