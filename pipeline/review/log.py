"""What people said of samples: a log that is only ever appended to, and the review table that is made from it.

Each session of a reviewer appends to a file of its own, ``<run>/review/<time>-<random>.jsonl``, a line for each thing
said. So two reviewers, or two servers, never write to one file, and a server that is killed can spoil no more than the
end of its last line, which was not answered yet. A line has an id that its sender chose: sent twice, it counts once.
"""

from __future__ import annotations

import datetime
import io
import os
import secrets
import threading
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from data_schemas.errors import UserError
from data_schemas.io.storage import patiently, read_bounded, url_of, url_to_fs, write_file
from data_schemas.io.text import one_line
from data_schemas.settings import first_mistake
from data_schemas.tables import REVIEW
from pipeline.core.parts import fingerprint
from pipeline.core.review import FILE, MAX_TABLE, Reviews
from pipeline.review.opinions import opinions, review_rows
from pipeline.review.said import Said

FOLDER = "review"
MADE_FROM_LOG = b"review log"
"""Marks a review table that this module made; any other was written by a person, and is taken into the log."""


class ReviewLog:
    """The log of a run. Several may be open at once, in one process or in many."""

    def __init__(self, run_url: str):
        self.run_url = run_url
        self.fs, root = url_to_fs(run_url)
        self.root = root.rstrip("/")
        self.folder = f"{self.root}/{FOLDER}"
        self._lock = threading.Lock()
        self._files: dict[str, tuple[str, list[Said]]] = {}
        self._own = self._new_file()

    def rows(self) -> list[Said]:
        """Every line of all sessions in the order of time, each id once. Files that did not change are not read."""
        with self._lock:
            return self._rows()

    def append(self, said: dict[str, Any]) -> Said:
        """Store one line and return it; with an id that is there already, return that line.

        Time is added here. Raises UserError if it makes no sense, OSError if it could not be stored.
        """
        with self._lock:
            rows = self._rows()
            if (known := next((row for row in rows if row.id == said.get("id")), None)) is not None:
                return known
            last = rows[-1].time if rows else datetime.datetime.min.replace(tzinfo=datetime.UTC)
            now = max(datetime.datetime.now(datetime.UTC), last + datetime.timedelta(microseconds=1))
            row = _said({**said, "time": now})
            own = {other.id for other in rows if other.reviewer == row.reviewer and other.action != "undo"}
            if row.action == "undo" and row.value not in own:
                raise UserError(f"undo: {row.reviewer} has said nothing with the id {row.value}")
            self._store([row])
            return row

    def write_table(self) -> int:
        """Make the review table from the log, if there is one, and return its rows.

        A table that a person wrote is taken into the log first, so that nothing in it is lost.
        """
        with self._lock:
            if not self._listed():
                return 0
            self._adopt()
            rows = review_rows(opinions(self._rows()))
            table = REVIEW.table(rows)
            buffer = io.BytesIO()
            marked = {**(table.schema.metadata or {}), b"made_from": MADE_FROM_LOG}
            pq.write_table(table.replace_schema_metadata(marked), buffer)
            write_file(self.fs, f"{self.root}/{FILE}", buffer.getvalue())
            return len(rows)

    def verdicts(self) -> dict[str, str]:
        """Sample id -> "kept" or "rejected", as the review table has it, or will once it is made."""
        with self._lock:
            said = opinions(self._rows())
            by_hand = [row for row in Reviews(self.run_url).rows.values() if row["sample_id"] not in said]
            rows = [*([] if by_hand and self._table_is_ours() else by_hand), *review_rows(said)]
            return {row["sample_id"]: row["verdict"] for row in rows if row["verdict"] is not None}

    def adopt(self) -> None:
        """Take a review table that a person wrote into the log."""
        with self._lock:
            self._adopt()

    def _adopt(self) -> None:
        table = Reviews(self.run_url)  # raises UserError if it cannot be read
        if not table.rows or self._table_is_ours():
            return
        known = {row.id for row in self._rows()}
        new: list[Said] = []
        for sample_id, said in table.rows.items():
            try:
                new += [row for row in _said_by_hand(said) if row.id not in known]
            except UserError as error:
                where = f"{url_of(self.fs, self.root)}/{FILE}: sample {one_line(sample_id, 80)}"
                raise UserError(f"{where}: {error}; correct that row or remove it") from error
        if new:
            self._store(new)

    def _table_is_ours(self) -> bool:
        data = read_bounded(self.fs, f"{self.root}/{FILE}", "write the review again", MAX_TABLE)
        return (pq.read_schema(io.BytesIO(data)).metadata or {}).get(b"made_from") == MADE_FROM_LOG

    def _new_file(self) -> str:
        return f"{self.folder}/{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.jsonl"

    def _store(self, rows: Iterable[Said]) -> None:
        data = "".join(row.model_dump_json() + "\n" for row in rows).encode()
        local = isinstance(self.fs, LocalFileSystem)
        try:
            if local:
                self.fs.makedirs(self.folder, exist_ok=True)
            with self.fs.open(self._own, "ab") as file:
                file.write(data)
                if local:
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException:
            self._own = self._new_file()  # half a line may be there: nothing must follow it
            raise

    def _listed(self) -> list[str]:
        try:
            found = patiently(lambda: self.fs.ls(self.folder, detail=False, refresh=True), self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path for path in map(str, found) if path.endswith(".jsonl"))

    def _rows(self) -> list[Said]:
        for path in self._listed():
            stamp = str(self.fs.ukey(path))
            if self._files.get(path, ("", []))[0] != stamp:
                self._files[path] = (stamp, self._read(path))
        by_id = {row.id: row for _, rows in self._files.values() for row in rows}
        return sorted(by_id.values(), key=lambda row: (row.time, row.id))

    def _read(self, path: str) -> list[Said]:
        *lines, _ = read_bounded(self.fs, path, "remove it", MAX_TABLE).split(
            b"\n"
        )  # an unfinished one was not answered
        where = url_of(self.fs, path)
        return [_parsed(line, f"{where}: line {number}") for number, line in enumerate(lines, 1)]


def _parsed(line: bytes, where: str) -> Said:
    try:
        return Said.model_validate_json(line)
    except ValidationError as error:
        raise UserError(f"{where}: {first_mistake(error)}; correct it or remove the line") from error


def _said(values: dict[str, Any]) -> Said:
    try:
        return Said.model_validate(values)
    except ValidationError as error:
        raise UserError(first_mistake(error)) from error


def _said_by_hand(row: dict[str, Any]) -> list[Said]:
    """The lines that say what a row of a review table says."""
    common = {key: row[key] for key in ("sample_id", "reviewer", "time", "reason")}
    said = {key: row[key] for key in ("verdict", "alpha_threshold", "matte") if row[key] is not None}
    text = {key: str(value) for key, value in common.items()}
    return [
        _said({**common, "action": action, "value": value, "id": fingerprint(**text, action=action, value=str(value))})
        for action, value in said.items()
    ]
