"""The plain data that the report page is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from PIL import Image

Pictures = Callable[[str, str], Image.Image | None]
View = dict[str, Any]


@dataclass(frozen=True)
class RuleLine:
    """One filter of ``decide``: ``column`` must be at least ("min") or at most ("max") the threshold."""

    stage: str
    column: str
    bound: str
    threshold: float
    reason: str
    meaning: str

    def passes(self, value: float) -> bool:
        return value >= self.threshold if self.bound == "min" else value <= self.threshold


@dataclass(frozen=True)
class Training:
    """What the trainer, the evaluator and the sampler left.

    ``log`` holds the rows of metrics.jsonl: ``step`` with ``loss`` (nats) and ``samples_per_s``, or with
    ``val_loss`` and ``val_loss_target``; one row may have ``val_unigram_cross_entropy``. ``evaluation`` maps names to
    numbers, nested values are passed over. ``samples`` are (sample_id, generated picture). ``of_other_shards``: the
    model was trained on other shards than the page's dataset has.
    """

    log: list[dict]
    evaluation: dict
    samples: list[tuple[str, Image.Image]]
    of_other_shards: bool = False


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows. ``picture(sample_id, name)`` is None for a picture that was never made."""

    name: str
    manifest: pd.DataFrame
    rules: list[RuleLine]
    metrics: dict
    picture: Pictures
    config: dict
    training: Training | None


def rules_by_column(rules: Iterable[RuleLine]) -> dict[str, list[RuleLine]]:
    groups: dict[str, list[RuleLine]] = {}
    for rule in rules:
        groups.setdefault(rule.column, []).append(rule)
    return groups


def decided(manifest: pd.DataFrame, decision: str) -> pd.DataFrame:
    return manifest[manifest["decision"] == decision]


def records(frame: pd.DataFrame) -> list[View]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
