"""The tables of a run as columns with a row for each sample. No picture is read.

A column is read when it is first asked for, from the parts that are there under the run's current settings; a run that
is at work or half made has nulls for what is not made. ``RunColumns.refreshed`` reads what was written since, and no
more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io.storage import url_to_fs
from data_schemas.tables import DECIDE, MANIFEST, PLAN, STATUS_COLUMNS
from pipeline.core.parts import NOT_WHOLE, PartStore
from pipeline.core.review import FILE
from pipeline.dataset.frames.columns import FIRST, Standing, need_column
from pipeline.dataset.opened import open_dataset
from pipeline.review.log import FOLDER, ReviewLog
from pipeline.run import Run

AT_ONCE = 16
"""Files of a bucket that are read at the same time."""
Listed = dict[str, dict[str, str]]
"""Stage -> part -> what changes when the part is written. The empty name has what is no stage's: the newest dataset,
and the files that hold what people said."""


@dataclass
class _Cell:
    """What was read of a part of a stage. ``take`` has its row for each sample of the plan's part, if they differ."""

    columns: dict[str, pa.Array] = field(default_factory=dict)
    take: pa.Array | None = None


class RunColumns:
    """All columns of the parts of a run, as they were when it was made or ``refreshed``.

    The plan's, the stages' and the decisions' columns have their own names, status columns and models those of their
    stages in front ("identity.status"), "shard" comes from the newest dataset. ``places`` has each column's stage and
    its name there.
    """

    def __init__(self, run: Run, listed: Listed | None = None, cells: dict[tuple[str, str], _Cell] | None = None):
        self.run = run
        self.rules = list(run.rules)
        self.listed = _listed(run) if listed is None else listed
        self.parts = [part for part in run.parts() if part in self.listed["plan"]]
        self.fields, self.places = _fields(run)
        self._cells = cells or {}
        self._whole: dict[str, pa.ChunkedArray] = {}
        self._lock = threading.RLock()

    def refreshed(self) -> RunColumns:
        """The columns as they are now; this object if nothing was written."""
        now = _listed(self.run)
        if now == self.listed:
            return self
        changed = {
            (stage, part) for stage, parts in self.listed.items() for part, stamp in parts.items()
            if now[stage].get(part) != stamp
        }  # fmt: skip
        plans = {part for stage, part in changed if stage == "plan"}
        with self._lock:
            kept = {key: cell for key, cell in self._cells.items() if key not in changed and key[1] not in plans}
        return RunColumns(self.run, now, kept)

    @cached_property
    def ids(self) -> pa.Array:
        """The ids of all samples that are planned so far, in the order of the plan."""
        return self.column(FIRST).combine_chunks()

    def __len__(self) -> int:
        return len(self.column(FIRST))

    def missing(self) -> dict[str, int]:
        """How many parts each stage lacks; only those that lack some."""
        wanted = self.run.parts()
        counts = {stage: sum(part not in there for part in wanted) for stage, there in self.listed.items()}
        return {stage: count for stage, count in counts.items() if count and stage}

    def part_of(self, row: int) -> str:
        """The part of the sample in a row."""
        return self.parts[int(np.searchsorted(self._ends, row, side="right"))]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(chunk) for chunk in self.column(FIRST).chunks])

    def load(self, names: Iterable[str]) -> None:
        """Read these columns of all parts, those of a stage at once."""
        for name in (names := list(names)):
            need_column(self, name)
        with self._lock:
            wanted: dict[str, list[str]] = {}
            for name in (FIRST, *names):
                stage, column = self.places[name]
                if name not in self._whole and stage != "dataset":
                    wanted.setdefault(stage, []).append(column)
            for stage, columns in wanted.items():
                self._read(stage, columns)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column's values, one for each sample; null where its part is not made. UserError if there is none."""
        kind = need_column(self, name).type
        with self._lock:
            if name not in self._whole:
                self.load([name])
                stage, column = self.places[name]
                if stage == "dataset":
                    self._whole[name] = self._shards()
                else:
                    chunks = [self._chunk(stage, part, column, kind) for part in self.parts]
                    self._whole[name] = pa.chunked_array(chunks, kind)
            return self._whole[name]

    def standing(self) -> Standing:
        """By the stages' states and what people said, as the next curation would see it."""
        stages = [stage.name for stage in self.run.stages()]
        self.load([f"{stage}.status" for stage in stages])
        states = [self.column(f"{stage}.status") for stage in stages]
        failed = np.zeros(len(self), dtype=bool)
        scored = np.ones(len(self), dtype=bool)
        for state in states:
            failed |= pc.fill_null(pc.equal(state, "error"), False).to_numpy()
            scored &= state.is_valid().to_numpy()
        verdicts = np.full(len(self), None, dtype=object)
        told = ReviewLog(self.run.config.run_url).verdicts()
        for sample_id, row in zip(told, pc.index_in(pa.array(told, pa.string()), self.ids).to_pylist(), strict=True):
            if row is not None:
                verdicts[row] = told[sample_id]
        return Standing(failed, verdicts, scored)

    def _read(self, stage: str, columns: Sequence[str]) -> None:
        """Put columns of a stage's parts into the cells."""
        store = self.run.store(stage)
        here = isinstance(store.fs, LocalFileSystem)
        names = [FIRST, *(c for c in columns if c != FIRST)]
        todo = [
            part for part in self.parts
            if part in self.listed[stage] and not set(names) <= self._cell(stage, part).columns.keys()
        ]  # fmt: skip
        # of a bucket the whole file comes in any case
        work = lambda part: _columns_of(store, part, names if here else None)  # noqa: E731
        if here:
            tables = map(work, todo)
            for part, table in zip(todo, tables, strict=True):
                self._keep(stage, part, table, names)
        else:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for part, table in zip(todo, pool.map(work, todo), strict=True):
                    self._keep(stage, part, table, names)

    def _keep(self, stage: str, part: str, table: pa.Table | None, names: Sequence[str]) -> None:
        cell = self._cell(stage, part)
        if table is None:  # damaged, or gone meanwhile: like one that is not made
            cell.columns |= dict.fromkeys(names)
            return
        cell.columns |= {name: table[name].combine_chunks() for name in table.column_names}
        if stage != "plan":
            planned = self._cell("plan", part).columns.get(FIRST)
            own = cell.columns[FIRST]
            if planned is not None and not own.equals(planned):  # made of an earlier plan
                cell.take = pc.index_in(planned, value_set=own)

    def _cell(self, stage: str, part: str) -> _Cell:
        return self._cells.setdefault((stage, part), _Cell())

    def _chunk(self, stage: str, part: str, column: str, kind: pa.DataType) -> pa.Array:
        planned = self._cell("plan", part).columns.get(FIRST)
        if planned is None:
            return pa.nulls(0, kind)
        cell = self._cells.get((stage, part))
        found = None if cell is None else cell.columns.get(column)
        if cell is None or found is None or found.type != kind:
            return pa.nulls(len(planned), kind)
        return found if cell.take is None else found.take(cell.take)

    def _shards(self) -> pa.ChunkedArray:
        try:
            table = open_dataset(self.run.config.run_url).table([FIRST, "shard"])
        except UserError:  # none was published yet
            return pa.chunked_array([pa.nulls(len(self), pa.string())])
        found = pc.index_in(self.ids, value_set=table[FIRST].combine_chunks())
        return pa.chunked_array([table["shard"].combine_chunks().take(found)])


def _fields(run: Run) -> tuple[dict[str, pa.Field], dict[str, tuple[str, str]]]:
    """Every column by name, and the stage and column that it is read from."""
    fields: dict[str, pa.Field] = {}
    places: dict[str, tuple[str, str]] = {}

    def add(stage: str, name: str, given: pa.Field) -> None:
        shown = name if name not in fields else f"{stage}.{name}"
        fields[shown], places[shown] = given.with_name(shown).with_nullable(True), (stage, name)

    for schema in (PLAN, DECIDE):
        for own in schema.arrow():
            if own.name not in fields:
                add(schema.name, own.name, own)
    add("dataset", "shard", MANIFEST.arrow().field("shard"))
    apart = {column.name for column in STATUS_COLUMNS} | {"model"}
    for stage in run.stages():
        for own in stage.schema().arrow():
            if own.name in apart:
                shown = f"{stage.name}.{own.name}"
                fields[shown], places[shown] = own.with_name(shown), (stage.name, own.name)
            elif own.name != FIRST:
                add(stage.name, own.name, own)
    return fields, places


def _listed(run: Run) -> Listed:
    """The parts that are there of the plan, every stage and the decisions, the newest dataset, and the review."""
    found = {stage: part_stamps(run.store(stage)) for stage in ("plan", *(s.name for s in run.stages()), "decide")}
    fs, root = url_to_fs(run.config.run_url)
    root = root.rstrip("/")
    found[""] = _stamps(fs, f"{root}/{FOLDER}", ".jsonl") | _stamps(fs, root, FILE)
    with suppress(UserError):  # none was published yet
        found[""]["dataset"] = str(open_dataset(run.config.run_url).facts.get("manifest_sha256"))
    return found


def part_stamps(store: PartStore) -> dict[str, str]:
    """The parts that are there, each with what changes when it is written; one request of a bucket."""
    ending = ".parquet"
    return {name.removesuffix(ending): stamp for name, stamp in _stamps(store.fs, store.root, ending).items()}


def _stamps(fs: fsspec.AbstractFileSystem, folder: str, ending: str) -> dict[str, str]:
    """The files of a folder with this ending by name, but hidden ones, each with what changes when it is written."""
    try:
        if isinstance(fs, LocalFileSystem):  # ten times faster than fsspec
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(ending)]
            stamps = {name: f"{status.st_size} {status.st_mtime_ns} {status.st_ino}" for name, status in found}
        else:
            files = fs.ls(folder, detail=True)
            stamps = {
                str(f["name"]).rpartition("/")[2]: f"{f.get('size')} {f.get('ETag') or f.get('LastModified')}"
                for f in files
            }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: stamp for name, stamp in stamps.items() if name.endswith(ending) and not name.startswith(".")}


def _columns_of(store: PartStore, part: str, names: Sequence[str] | None) -> pa.Table | None:
    """Columns of a part, or all; None if it cannot be read or lacks one."""
    path = store.path(part, "parquet")
    try:
        source = path if isinstance(store.fs, LocalFileSystem) else pa.BufferReader(store.fs.cat_file(path))
        with pq.ParquetFile(source) as file:
            table = file.read(columns=None if names is None else list(names), use_threads=False)
    except NOT_WHOLE:
        return None
    return table if names is None or set(names) <= set(table.column_names) else None
