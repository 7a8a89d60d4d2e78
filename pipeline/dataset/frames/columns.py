"""What a frame reads: columns with a row for each sample, of a run (run_columns.py) or of a dataset's manifest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from data_schemas.errors import UserError
from data_schemas.settings import suggest
from pipeline.core.stage import Rule
from pipeline.dataset.opened import Dataset

FIRST = "sample_id"


@dataclass(frozen=True)
class Standing:
    """What decides about samples before any score does, an entry for each sample: whether a stage failed on it, a
    reviewer's verdict or None, and whether every stage was there to score it."""

    failed: np.ndarray
    verdicts: np.ndarray
    scored: np.ndarray


class Columns(Protocol):
    """What a frame reads. ``fields`` has every column by name, ``rules`` those by which its samples are decided."""

    fields: dict[str, pa.Field]
    rules: list[tuple[str, Rule]]

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...

    def load(self, names: Iterable[str]) -> None:
        """Read these columns at once, which is faster than one after the other."""

    def column(self, name: str) -> pa.ChunkedArray:
        """A column's values, one for each sample. Raises UserError if there is no such column."""

    def standing(self) -> Standing:
        """What decides about samples before any score."""


def need_column(columns: Columns, name: str) -> pa.Field:
    """The field of a column. Raises UserError if there is none of this name."""
    if name not in columns.fields:
        raise UserError(f"column {name!r}: no such column; {suggest(name, columns.fields)}")
    return columns.fields[name]


def score_name(columns: Columns, stage: str, column: str) -> str:
    """The name under which the columns have a stage's own column."""
    return f"{stage}.{column}" if f"{stage}.{column}" in columns.fields else column


class DatasetColumns:
    """The manifest of a dataset that was published, also by another version of this program."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.fields = {f.name: f for f in dataset.schema}
        self.rules = [
            (str(r["stage"]), Rule(column, str(r["bound"]), float(r["threshold"]), reason, ""))
            for (reason, column), r in dataset.rules.items()
            if column in self.fields
        ]
        self._table = dataset.table()

    def __len__(self) -> int:
        return len(self._table)

    def load(self, names: Iterable[str]) -> None:
        """Nothing: the manifest is one file."""

    def column(self, name: str) -> pa.ChunkedArray:
        """A column's values, one for each sample. Raises UserError if there is no such column."""
        need_column(self, name)
        return self._table[name]

    def standing(self) -> Standing:
        """As the manifest tells it."""
        decision = self.column("decision").to_numpy()
        verdicts = decision.copy()
        verdicts[~self.column("reviewer").is_valid().to_numpy()] = None
        return Standing(decision == "error", verdicts, np.ones(len(self), dtype=bool))
