"""The data that the report page is made from, as plain dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.core.stage import Rule

Pictures = Callable[[str, str], Image.Image | None]
"""Reads a picture of a sample by (sample id, name); None for a picture that was never made."""
View = dict[str, Any]
"""A dictionary with the values that the template shows."""


@dataclass(frozen=True)
class RuleLine(Rule):
    """A rule with the stage that it belongs to."""

    stage: str


@dataclass(frozen=True)
class Training:
    """The results of the trainer, the evaluator and the sampler.

    ``log`` holds the rows of metrics.jsonl: ``step`` with ``loss`` (nats) and ``samples_per_s``, or with ``val_loss``
    and ``val_loss_target``; one row may have ``val_unigram_cross_entropy``. ``evaluation`` maps names to numbers;
    nested values are ignored. ``samples`` are (sample id, generated picture). ``of_other_shards`` says that the model
    was not trained on the shards of the dataset that the page shows.
    """

    log: list[dict]
    evaluation: dict
    samples: list[tuple[str, Image.Image]]
    of_other_shards: bool = False


@dataclass(frozen=True)
class Against:
    """An earlier dataset that the run is compared with.

    ``found`` is what ``upkeep.diff.diff`` says of the two; ``before`` has the earlier one's sample_id, decision and
    reasons.
    """

    name: str
    found: dict
    before: pd.DataFrame


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows.

    ``references`` are the rows of the reference pool and ``reference`` reads the picture of one by its id.
    ``agreement`` has a row for each pair that judged the same samples: ``who``, ``with``, ``samples``, Cohen's
    ``kappa``, and the interval from ``low`` to ``high``.
    """

    name: str
    manifest: pd.DataFrame
    rules: list[RuleLine]
    metrics: dict
    picture: Pictures
    config: dict
    training: Training | None
    references: Sequence[dict] = ()
    reference: Callable[[str], Image.Image | None] = lambda reference_id: None
    agreement: list[dict] = field(default_factory=list)
    against: Against | None = None


def rules_by_column(rules: Iterable[RuleLine]) -> dict[str, list[RuleLine]]:
    """The rules grouped by the column that they use."""
    groups: dict[str, list[RuleLine]] = {}
    for rule in rules:
        groups.setdefault(rule.column, []).append(rule)
    return groups


def decided(manifest: pd.DataFrame, decision: str) -> pd.DataFrame:
    """The rows of the manifest with this decision."""
    return manifest[manifest["decision"] == decision]


def numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    """A column as numbers; NaN where there is none, everywhere if there is no such column."""
    values = frame[column] if column in frame else pd.Series(np.nan, frame.index)
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)


def records(frame: pd.DataFrame) -> list[View]:
    """The rows as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
