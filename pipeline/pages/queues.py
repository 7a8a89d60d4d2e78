"""Which samples a reviewer is shown, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from data_schemas.errors import UserError
from data_schemas.settings import suggest
from pipeline.core.stage import Rule
from pipeline.dataset.frames.columns import score_name
from pipeline.dataset.frames.run_columns import RunColumns
from pipeline.review.opinions import Opinions
from pipeline.run import Run

QUEUES = ("undecided", "nearest", "audit", "errors", "flagged", "disagreement", "all")
"""Besides these, ``reason:CODE`` has the samples that were rejected for a reason."""
Rules = Sequence[tuple[str, Rule]]
BLIND = ("audit", "flagged", "all")
"""The queues whose choice of samples tells nothing of what the filters decided; their order does not either."""


class Decisions:
    """Decision, reasons and scores of all samples of a run that are decided. Only what changed is read again."""

    def __init__(self, run: Run):
        self._columns = RunColumns(run)

    @property
    def rules(self) -> Rules:
        """(stage, rule) of every rule of the run."""
        return self._columns.rules

    def frame(self) -> pd.DataFrame:
        """Columns sample_id, decision, reasons and a score for each rule's column, in the order of the plan."""
        columns = self._columns = self._columns.refreshed()
        scores = {rule.column: score_name(columns, stage, rule.column) for stage, rule in self.rules}
        names = {"sample_id": "sample_id", "decision": "decision", "reasons": "reasons", **scores}
        columns.load(names.values())
        frame = pa.table({shown: columns.column(name) for shown, name in names.items()}).to_pandas()
        return frame[frame["decision"].notna()].reset_index(drop=True)


def queue(name: str, frame: pd.DataFrame, rules: Rules, opinions: Opinions, reviewer: str, blind: bool = False) -> Any:
    """The ids of a queue, in order: see QUEUES. UserError if there is no such queue.

    ``blind`` queues have an order that tells nothing: neither kept and rejected ones in turns, nor that of the plan,
    which has planted faults at even distances.
    """
    if not len(frame):
        return []
    if blind:
        frame = frame.sort_values("sample_id", key=lambda ids: ids.map(_digest))
    ids = frame["sample_id"]
    of_reviewer = {i: by[reviewer] for i, by in opinions.items() if reviewer in by}
    kinds: dict[str, Callable[[], pd.Series]] = {
        "undecided": lambda: ids[frame["decision"] == "undecided"],
        "nearest": lambda: ids.iloc[np.argsort(distances(frame, rules), kind="stable")],
        "audit": lambda: ids[_judged(frame)] if blind else pd.Series(audit(frame)),
        "errors": lambda: ids[frame["decision"] == "error"],
        "flagged": lambda: ids[[bool(i in of_reviewer and of_reviewer[i].value("flag")) for i in ids]],
        "disagreement": lambda: ids[[_disagree(opinions, i) for i in ids]],
        "all": lambda: ids,
    }
    kind, _, reason = name.partition(":")
    if kind == "reason":
        return ids[[reason in reasons for reasons in frame["reasons"]]].tolist()
    if kind not in kinds:
        raise UserError(f"queue {name!r}: no such queue; {suggest(name, QUEUES)}")
    return kinds[kind]().tolist()


def distances(frame: pd.DataFrame, rules: Rules) -> np.ndarray:
    """How far each sample's score that is nearest to its threshold is from it, in standard deviations of that score.

    Infinite for a sample without scores, or with an error.
    """
    found = np.full(len(frame), np.inf)
    for _, rule in rules:
        scores = frame[rule.column].to_numpy(float)
        spread = np.nanstd(scores) if np.isfinite(scores).any() else 0.0
        if spread > 0:
            found = np.fmin(found, np.abs(scores - rule.threshold) / spread)
    return np.where(_judged(frame), found, np.inf)


def audit(frame: pd.DataFrame) -> list[str]:
    """Kept and rejected samples in turns, each in an order that is random but always the same."""
    mixed = {
        decision: sorted(own["sample_id"], key=_digest) for decision, own in frame[_judged(frame)].groupby("decision")
    }
    longest = max(map(len, mixed.values()), default=0)
    return [ids[n] for n in range(longest) for ids in mixed.values() if n < len(ids)]


def _judged(frame: pd.DataFrame) -> pd.Series:
    return frame["decision"].isin(["kept", "rejected"])


def _digest(sample_id: str) -> bytes:
    """Gives samples an order that is random but always the same."""
    return hashlib.sha256(sample_id.encode()).digest()


def _disagree(opinions: Opinions, sample_id: str) -> bool:
    said = {opinion.value("verdict") for opinion in opinions.get(sample_id, {}).values()} - {None}
    return len(said) > 1
