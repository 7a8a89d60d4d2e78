"""Pictures inside Parquet files: which columns hold them, what their rows are, and their bytes, a few rows at a time.

A column of pictures is what Hugging Face writes, a struct of ``bytes`` and ``path``, or plain binary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.errors import UserError

ROWS_AT_ONCE = 16
BUFFER = 1 << 20
"""Bytes read from a file at once, so that a large row group is never in memory as a whole."""

CATEGORY_COLUMNS = ("category", "label", "class")
NAME_COLUMNS = ("name",)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; None where there is none."""

    image: str
    mask: str | None
    category: str | None
    name: str | None


@dataclass(frozen=True)
class Row:
    """One row without its pixels. ``path`` is the file the picture was made from, if the column says so."""

    number: int
    sha256: str
    mask_sha256: str
    path: str
    category: str
    name: str


def column_names(path: Path) -> list[str]:
    return list(_open(path).schema_arrow.names)


def find_columns(path: Path, image: str | None, mask: str | None, category: str | None, name: str | None) -> Columns:
    """The columns of these names; None finds the first of pictures, and category and name by their usual names."""
    schema = _open(path).schema_arrow
    there = ", ".join(schema.names) or "none"
    pictures = [f.name for f in schema if _holds_pictures(f.type)]
    for wanted, is_picture in ((image, True), (mask, True), (category, False), (name, False)):
        if wanted is not None and wanted not in schema.names:
            raise UserError(f"{path}: there is no column {wanted!r}; there is: {there}")
        if wanted is not None and is_picture and wanted not in pictures:
            kind = schema.field(wanted).type
            raise UserError(f"{path}: column {wanted!r} holds {kind}, not pictures; there is: {there}")
    image = image or next((p for p in pictures if p != mask), None)
    if image is None:
        raise UserError(f"{path}: no column holds pictures (struct of bytes and path, or binary); there is: {there}")
    texts = [f.name for f in schema if _is_text(f.type)]
    category = category or next((c for c in CATEGORY_COLUMNS if c in texts), None)
    return Columns(image, mask, category, name or next((c for c in NAME_COLUMNS if c in texts), None))


def list_rows(path: Path, columns: Columns) -> tuple[Row, ...]:
    """Every row with the digests of its pictures. The file is read again only if its size or time has changed."""
    found = path.stat()
    return _list_rows(path, found.st_size, found.st_mtime_ns, columns)


@lru_cache(maxsize=256)
def _list_rows(path: Path, size: int, changed: int, columns: Columns) -> tuple[Row, ...]:
    file = _open(path)
    labels = _class_names(file.schema_arrow)
    used = [c for c in (columns.image, columns.mask, columns.category, columns.name) if c is not None]

    def text(batch: pa.RecordBatch, column: str | None, i: int) -> str:
        value = None if column is None else batch.column(column)[i].as_py()
        names = labels.get(column or "")
        if names is not None and isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        return "" if value is None else str(value)

    rows: list[Row] = []
    for batch in _batches(file, path, used, None):
        for i in range(batch.num_rows):
            data, made_from = _picture(batch, columns.image, i)
            mask = _picture(batch, columns.mask, i)[0] if columns.mask else None
            row = Row(
                len(rows), _digest(data), _digest(mask), made_from,
                text(batch, columns.category, i), text(batch, columns.name, i),
            )  # fmt: skip
            rows.append(row)
    return tuple(rows)


class PictureColumn:
    """One column of pictures of one file, read forwards; an earlier row starts its row group again."""

    def __init__(self, path: Path, column: str):
        self._path, self._column = path, column
        self._file = _open(path)
        self._groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
        self._first = self._end = 0  # first row of the batch at hand, and of the next row group
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None

    def at(self, number: int) -> bytes | None:
        """The bytes in row ``number``, None if the cell is empty."""
        if self._batch is None or not self._first <= number < self._end:
            self._enter(number)
        assert self._batch is not None
        while number >= self._first + self._batch.num_rows:
            self._first += self._batch.num_rows
            self._batch = next(self._batches)
        data, _ = _picture(self._batch, self._column, number - self._first)
        return None if data is None else data.to_pybytes()

    def _enter(self, number: int) -> None:
        group = first = 0
        while number >= first + self._groups[group]:
            first += self._groups[group]
            group += 1
        self._first, self._end = first, first + self._groups[group]
        self._batches = _batches(self._file, self._path, [self._column], [group])
        self._batch = next(self._batches)

    def close(self) -> None:
        self._batches, self._batch = iter(()), None
        self._file.close()


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=BUFFER)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _batches(
    file: pq.ParquetFile, path: Path, columns: Sequence[str], groups: list[int] | None
) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path}: not a Parquet file that can be read ({reason}); get it again")


def _picture(batch: pa.RecordBatch, column: str, i: int) -> tuple[pa.Buffer | None, str]:
    """(bytes, path) of one cell, without a copy of the bytes."""
    cell = batch.column(column)[i]
    if not pa.types.is_struct(cell.type):
        return cell.as_buffer(), ""
    if not cell.is_valid:
        return None, ""
    path = cell["path"].as_py() if cell.type.get_field_index("path") >= 0 else None
    return cell["bytes"].as_buffer(), path if isinstance(path, str) else ""


def _digest(data: pa.Buffer | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes by column, where Hugging Face's metadata gives them to a column of numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {column: list(map(str, f["names"])) for column, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
