"""What the page of ``instructar explore`` asks for: samples that were chosen, comparisons, and saving them.

It reads tables only. Of a run that is at work, or that people review, it sees what was written since the last question.
"""

from __future__ import annotations

import math
import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io.storage import shown, url_to_fs
from data_schemas.io.text import one_line
from pipeline.core.names import check_name
from pipeline.core.stage import Rule
from pipeline.dataset.curated import open_run
from pipeline.dataset.frames import decisions, selection
from pipeline.dataset.frames.columns import FIRST, Columns, DatasetColumns
from pipeline.dataset.frames.conditions import parse
from pipeline.dataset.frames.frame import Frame
from pipeline.dataset.frames.run_columns import RunColumns
from pipeline.dataset.opened import open_dataset
from pipeline.pages.samples import Samples, plain

PAGE = 48
"""Samples on a page of the grid."""
FRESH = 1.0
"""Seconds for which the parts that were listed are taken to be all there are."""
MOST = 20
"""Most conditions of a question."""
EXAMPLES = 12
GRID = (FIRST, "decision", "reasons", "prompt")

Rules = Sequence[tuple[str, Rule]]


@dataclass(frozen=True)
class Asked:
    """What a page asks for: conditions, order, and what it compares. ``thresholds`` are texts as "reason=value";
    ``against`` compares with the other run in place of the run's own thresholds."""

    where: tuple[str, ...] = ()
    sort: str = ""
    descending: bool = False
    thresholds: tuple[str, ...] = ()
    against: bool = False

    @property
    def compares(self) -> bool:
        """Whether there is a before and an after."""
        return bool(self.thresholds) or self.against


class Explorer:
    """A run, or a dataset, to be explored; and another one that it is compared with."""

    def __init__(self, url: str, against: str | None = None):
        self.url = url
        self._columns, self.note = opened(url)
        self.run = self._columns.run if isinstance(self._columns, RunColumns) else None
        self.samples = None if self.run is None else Samples(self.run)
        self.against = against
        self.other = None if against is None else opened(against)[0]
        self._lock, self._seen = threading.Lock(), time.monotonic()
        self._decided = lru_cache(maxsize=8)(self._decide)
        self._compared = lru_cache(maxsize=4)(self._compare)

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.run.config.name if self.run else open_dataset(self.url).name

    def columns(self) -> Columns:
        """The columns as they are now."""
        with self._lock:
            if isinstance(self._columns, RunColumns) and time.monotonic() - self._seen > FRESH:
                self._columns, self._seen = self._columns.refreshed(), time.monotonic()
            return self._columns

    def about(self) -> dict[str, Any]:
        """What the page has to know before it asks: columns, rules, and what is not there."""
        columns = self.columns()
        return {
            "name": self.name,
            "against": self.against and shown(self.against),
            "against_name": self.other_name,
            "pictures": self.run is not None,
            "note": self.note,
            "missing": columns.missing() if isinstance(columns, RunColumns) else {},
            "planned": self.run.config.samples if self.run else len(columns),
            "samples": len(columns),
            "columns": [_column(own, _group(columns, own.name)) for own in (*columns.fields.values(), *_ADDED)],
            "rules": [
                {"stage": stage, "reason": r.reason, "column": r.column, "bound": r.bound, "threshold": r.threshold,
                 "meaning": r.meaning}
                for stage, r in columns.rules
            ],
            "can_save": self._folder() is not None,
        }  # fmt: skip

    def rows(self, asked: Asked, page: int) -> dict[str, Any]:
        """A page of the samples that meet the conditions, with how many of them have each decision and reason."""
        columns = self._with_comparison(asked)
        frame = self._frame(columns, asked)
        first = max(0, min(page, (len(frame) - 1) // PAGE + 1) - 1) * PAGE
        own = frame[first : first + PAGE]
        shown_anyway = {*GRID, *decisions.ADDED}
        more = [name for name in dict.fromkeys([asked.sort, *_named(asked.where)]) if name and name not in shown_anyway]
        names = [*GRID, *more, *(decisions.ADDED if asked.compares else ())]
        made = own.values("synthesis.status").to_pylist() if "synthesis.status" in columns.fields else [None] * len(own)
        values = {name: [plain(value) for value in own.values(name).to_pylist()] for name in names}
        reasons = pc.value_counts(pc.list_flatten(frame.values("reasons").combine_chunks())).to_pylist()
        return {
            "found": len(frame),
            "of": len(columns),
            "first": first,
            "page": first // PAGE + 1,
            "pages": max(1, math.ceil(len(frame) / PAGE)),
            "shown": more,
            "rows": [
                {**{name: values[name][row] for name in names}, "made": made[row] == "ok"} for row in range(len(own))
            ],
            "decisions": decisions.counts(np.array(frame.values("decision").to_pylist(), dtype=object)),
            "reasons": {plain(line["values"]): line["counts"] for line in sorted(reasons, key=lambda r: -r["counts"])},
            "command": self._select_command(asked),
        }

    def comparison(self, asked: Asked) -> dict[str, Any]:
        """Before and after: decisions, funnels, what enters and what leaves, and the command that applies it."""
        columns = self.columns()
        now = self._decided(columns, self._rules(asked))
        before, alone = self._before(columns, asked)
        was, _ = self._sides(columns, asked)
        changes = decisions.change(was, now.decisions)
        kept = alone[before.decisions[alone] == "kept"]
        theirs = self.other if asked.against else None
        ids = theirs.column(FIRST).take(pa.array(kept[:EXAMPLES])).to_pylist() if theirs is not None else []
        return {
            "before": {"name": shown(self.against) if asked.against else "thresholds of the run", **_told(before)},
            "after": {"name": "thresholds below" if asked.thresholds else self.name, **_told(now)},
            "changes": {name: int((changes == name).sum()) for name in decisions.CHANGES},
            "transitions": decisions.transitions(was, now.decisions),
            "alone": {"count": len(alone), "kept": len(kept), "examples": [plain(i) for i in ids]},
            "not_compared": int((changes == None).sum()),  # noqa: E711  # element by element
            "command": self._apply_command(asked),
        }

    def row(self, sample_id: str) -> dict[str, Any] | None:
        """All that the tables say of a sample; None if they do not have it."""
        columns = self.columns()
        at = pc.index(columns.column(FIRST), sample_id).as_py()
        if at < 0:
            return None
        return {name: plain(columns.column(name)[at].as_py()) for name in columns.fields}

    def save(self, asked: Asked, name: str, shards: bool) -> dict[str, Any]:
        """Save what was chosen into a folder of this name beside the run's others."""
        folder = self._folder()
        if folder is None:
            raise UserError(f"{shown(self.url)} is in a bucket; save to this machine with the command that is shown")
        try:
            check_name(name)
        except ValueError as error:
            raise UserError(f"name of the selection: {error}") from error
        frame = self._frame(self._with_comparison(asked), asked)
        told = [*frame.conditions, *(f"decided with {text}" for text in asked.thresholds)]
        told += [f"compared with {self.other_name}"] if asked.against else []
        out = selection.save(frame.columns, frame.rows, told, f"{folder}/{name}", shards)
        return {"folder": out, "samples": len(frame)}

    @property
    def other_name(self) -> str:
        """The last part of the other run's address."""
        return (self.against or "").rstrip("/").rpartition("/")[2]

    def _folder(self) -> str | None:
        fs, root = url_to_fs(self.url)
        return f"{root.rstrip('/')}/{selection.FOLDER}" if isinstance(fs, LocalFileSystem) else None

    def _frame(self, columns: Columns, asked: Asked) -> Frame:
        if len(asked.where) > MOST:
            raise UserError(f"{len(asked.where)} conditions; a question may have {MOST}")
        frame = Frame.of(columns, lambda sample_id, name: None).where(*asked.where)
        return frame.sorted_by(asked.sort, asked.descending) if asked.sort else frame

    def _with_comparison(self, asked: Asked) -> Columns:
        columns = self.columns()
        return self._compared(columns, asked.thresholds, asked.against) if asked.compares else columns

    def _compare(self, columns: Columns, thresholds: tuple[str, ...], against: bool) -> Columns:
        return decisions.Compared(columns, *self._sides(columns, Asked(thresholds=thresholds, against=against)))

    def _sides(self, columns: Columns, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
        """Every sample's decision before and after."""
        after = self._decided(columns, self._rules(asked)).decisions
        found, _ = self._before(columns, asked)
        if not asked.against or self.other is None:
            return found.decisions, after
        return decisions.decisions_in(self.other, found.decisions, columns.column(FIRST).combine_chunks())[0], after

    def _before(self, columns: Columns, asked: Asked) -> tuple[decisions.Decided, np.ndarray]:
        """What is compared with, and the rows that it has alone."""
        if not asked.against:
            return self._decided(columns, None), np.array([], dtype=int)
        if self.other is None:
            raise UserError("no other run was given; start the page with --against RUN")
        found = self._decided(self.other, None)
        ids = columns.column(FIRST).combine_chunks()
        return found, decisions.decisions_in(self.other, found.decisions, ids)[1]

    def _decide(self, columns: Columns, rules: tuple[tuple[str, Rule], ...] | None) -> decisions.Decided:
        return decisions.decided(columns, rules)

    def _rules(self, asked: Asked) -> tuple[tuple[str, Rule], ...] | None:
        """The rules with the thresholds that were asked for; None for the run's own."""
        if not asked.thresholds:
            return None
        return tuple(decisions.rules_with(self.columns(), dict(map(_threshold, asked.thresholds))))

    def _apply_command(self, asked: Asked) -> str | None:
        if self.run is None or not asked.thresholds:
            return None
        sets = [f"--set decide.thresholds.{reason}={value:g}" for reason, value in map(_threshold, asked.thresholds)]
        place = f"--root {shlex.quote(self.run.config.root)} --name {shlex.quote(self.run.config.name)}"
        return " ".join(["instructar rerun decide", place, *sets])

    def _select_command(self, asked: Asked) -> str | None:
        """The command that saves the same samples; None if they were chosen by a comparison, which it has not."""
        if asked.compares:
            return None
        where = [f"--where {shlex.quote(text)}" for text in asked.where]
        return " ".join(["instructar select", shlex.quote(self.url), *where, "--out selection"])


def opened(url: str) -> tuple[Columns, str]:
    """The columns of a run or, where none of its parts was made with this program's settings, of its newest dataset;
    and what has to be said of that. Raises UserError if nothing is there."""
    try:
        columns = RunColumns(open_run(url).run)
    except UserError as error:
        try:
            dataset = open_dataset(url)
        except UserError:
            raise error from None
        return DatasetColumns(dataset), _said(dataset.version)
    if not len(columns):
        try:
            dataset = open_dataset(url)
        except UserError:
            return columns, "Nothing is planned yet."
        return DatasetColumns(dataset), _said(dataset.version)
    return columns, ""


def _said(version: str | None) -> str:
    return (
        "This program finds no parts of a run here that were made with its settings. What is shown is the manifest of "
        f"the dataset, version {version or 'unknown'}; pictures and the stages' own rows are not."
    )


def _told(found: decisions.Decided) -> dict[str, Any]:
    return {
        "counts": decisions.counts(found.decisions),
        "funnel": decisions.funnel(found),
        "thresholds": {rule.reason: rule.threshold for rule in found.rules},
    }


def _threshold(text: str) -> tuple[str, float]:
    reason, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"threshold {one_line(text, 100)!r}: write a reason and a number, as identity_low=0.6")
    return reason.strip(), number


_ADDED = [pa.field(name, pa.string(), True, meaning) for name, meaning in decisions.ADDED.items()]


def _named(where: Sequence[str]) -> list[str]:
    return [parse(text).column for text in where]


def _group(columns: Columns, name: str) -> str:
    """The table that a column is of."""
    if name in decisions.ADDED:
        return "comparison"
    return columns.places[name][0] if isinstance(columns, RunColumns) else "manifest"


def _column(own: pa.Field, group: str) -> dict[str, Any]:
    metadata = {key.decode(): value.decode() for key, value in (own.metadata or {}).items()}
    kind = "number" if pa.types.is_integer(own.type) or pa.types.is_floating(own.type) else "text"
    if pa.types.is_list(own.type) or pa.types.is_fixed_size_list(own.type):
        kind = "list"
    told = {key: metadata.get(key, "") for key in ("meaning", "unit")}
    return {"name": own.name, "group": group, "kind": kind, **told}
