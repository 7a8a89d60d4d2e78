"""Pictures in Parquet files: finding the columns that hold them, listing rows, and reading bytes a few rows at a time.

A column of pictures is a struct of ``bytes`` and ``path``, as Hugging Face writes it, or plain binary.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.files import check_file
from data_schemas.io.text import decoded, one_line
from pipeline.references.places import BucketPath, Place

ROWS_AT_ONCE = 16
BUFFER = 1 << 20
"""Bytes that are read from a file at once, so that a large row group is never in memory as a whole."""

MAX_ROWS = 1_000_000
UNPACKED, EXPANSION = 64_000_000, 20
"""Most bytes of a column after decompression: the larger of UNPACKED and EXPANSION times the file's size.

Pictures are compressed already, so a column that grows more than this was made to fill the memory.
"""

CATEGORY_COLUMNS = ("category", "label", "class", "class_name", "object", "text")
"""Usual names, the most telling first: a text often says more than the category."""
NAME_COLUMNS = ("name",)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; None for a column that the file does not have."""

    image: str
    mask: str | None
    category: str | None
    name: str | None


@dataclass(frozen=True)
class Row:
    """One row without its pixels. ``path`` is the picture's original file name, if the column stores it."""

    number: int
    sha256: str
    mask_sha256: str
    path: str
    category: str
    name: str


def column_names(path: Place) -> list[str]:
    """The names of all columns of a file."""
    return list(_open(path).schema_arrow.names)


def find_columns(path: Place, image: str | None, mask: str | None, category: str | None, name: str | None) -> Columns:
    """The columns to read. Raises UserError if a named column does not exist or does not hold pictures.

    Where ``image`` is None, the first column of pictures is taken; where ``category`` or ``name`` is None, a column
    with one of their usual names.
    """
    schema = _open(path).schema_arrow
    existing = ", ".join(schema.names) or "none"
    with_pictures = [f.name for f in schema if _holds_pictures(f.type)]
    for wanted, is_picture in ((image, True), (mask, True), (category, False), (name, False)):
        if wanted is not None and wanted not in schema.names:
            raise UserError(f"{path}: there is no column {wanted!r}; there is: {existing}")
        if wanted is not None and is_picture and wanted not in with_pictures:
            kind = schema.field(wanted).type
            raise UserError(f"{path}: column {wanted!r} holds {kind}, not pictures; there is: {existing}")
    image = image or next((p for p in with_pictures if p != mask), None)
    if image is None:
        raise UserError(f"{path}: no column holds pictures (struct of bytes and path, or binary); there is: {existing}")
    texts = [f.name for f in schema if _is_text(f.type)]
    category = category or next((c for c in CATEGORY_COLUMNS if c in texts), None)
    return Columns(image, mask, category, name or next((c for c in NAME_COLUMNS if c in texts), None))


def first_values(path: Place, column: str, count: int = 3) -> list[str]:
    """The first different values of a column as texts, class numbers as their names."""
    file = _open(path)
    labels = _class_names(file.schema_arrow)
    batch = next(_batches(file, path, [column], None), None)
    texts = [] if batch is None else [_text(batch, column, i, labels) for i in range(batch.num_rows)]
    return list(dict.fromkeys(texts))[:count]


def row_count(path: Place) -> int:
    """The number of rows of a file."""
    return int(_open(path).metadata.num_rows)


def list_rows(path: Place, columns: Columns) -> tuple[Row, ...]:
    """All rows with the digests of their pictures. The file is only read again if its size or time has changed."""
    return _list_rows(path, _version(path), columns)


@lru_cache(maxsize=256)
def _list_rows(path: Place, version: object, columns: Columns) -> tuple[Row, ...]:
    file = _open(path)
    labels = _class_names(file.schema_arrow)
    used = [c for c in (columns.image, columns.mask, columns.category, columns.name) if c is not None]
    rows: list[Row] = []
    unpacked, limit = 0, _limit(path)
    for batch in _batches(file, path, used, None):
        for i in range(batch.num_rows):
            data, made_from = _picture(batch, columns.image, i)
            mask = _picture(batch, columns.mask, i)[0] if columns.mask else None
            unpacked += sum(cell.size for cell in (data, mask) if cell is not None)
            if unpacked > 2 * limit:
                raise UserError(
                    f"{path}: its pictures unpack to more than {2 * limit} bytes; write it without compression"
                )
            row = Row(
                len(rows), _digest(data), _digest(mask), made_from,
                _text(batch, columns.category, i, labels), _text(batch, columns.name, i, labels),
            )  # fmt: skip
            rows.append(row)
    return tuple(rows)


def read_rows(path: Place, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file with these columns, a few in memory at a time. Raises UserError if one does not exist."""
    file = _open(path)
    if missing := [name for name in columns if name not in file.schema_arrow.names]:
        raise UserError(f"{path}: there is no column {missing[0]!r}; there is: {', '.join(file.schema_arrow.names)}")
    for batch in _batches(file, path, columns, None):
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a time that no calendar has
            raise _unreadable(path, error) from error
        yield from rows


def _text(batch: pa.RecordBatch, column: str | None, i: int, labels: dict[str, list[str]]) -> str:
    """A cell as text: a class number as its name, nothing as an empty text."""
    value = None if column is None else _value(batch.column(column)[i])
    names = labels.get(column or "")
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        value = names[value]
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:g}"
    return "" if value is None else str(value)


class PictureColumn:
    """Reads one picture column of one file in ascending order of rows. An earlier row restarts its row group."""

    def __init__(self, path: Place, column: str):
        self._path, self._column = path, column
        self._file = _open(path)
        self._groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
        self._first = self._end = 0  # first row of the current batch, and of the next row group
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None

    def at(self, number: int) -> bytes | None:
        """The bytes in row ``number``, or None if the cell is empty."""
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
        """Close the file."""
        self._batches, self._batch = iter(()), None
        self._file.close()


def _open(path: Place) -> pq.ParquetFile:
    try:
        if isinstance(path, BucketPath):
            return pq.ParquetFile(path.opened(), buffer_size=BUFFER)
        return pq.ParquetFile(check_file(str(path), "give a Parquet file"), buffer_size=BUFFER)
    except UserError:  # Unreadable is one
        raise
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _limit(path: Place) -> int:
    """Most bytes that a column of this file may have after decompression."""
    return max(UNPACKED, EXPANSION * (path.size if isinstance(path, BucketPath) else os.stat(str(path)).st_size))


def _version(path: Place) -> object:
    """Changes when the file is written again."""
    if isinstance(path, BucketPath):
        return path.size, path.version
    status = os.stat(str(path))
    return status.st_size, status.st_mtime_ns


def _batches(
    file: pq.ParquetFile, path: Place, columns: Sequence[str], groups: list[int] | None
) -> Iterator[pa.RecordBatch]:
    """Batches of a few rows, or of one row if rows may be large.

    Sizes are checked in the metadata before any is read.
    """
    largest = _check_sizes(file.metadata, path, columns, groups)
    rows = ROWS_AT_ONCE if largest * ROWS_AT_ONCE <= pictures.MAX_BYTES else 1
    try:
        yield from file.iter_batches(rows, row_groups=groups, columns=list(columns))
    except UserError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _check_sizes(metadata: pq.FileMetaData, path: Place, columns: Sequence[str], groups: Sequence[int] | None) -> int:
    """Bytes of the largest column chunk after decompression.

    Raises UserError if it is too large or there are too many rows.
    """
    if metadata.num_rows > MAX_ROWS:
        raise UserError(f"{path}: {metadata.num_rows} rows, more than {MAX_ROWS}; split it")
    limit, largest = _limit(path), 0
    for group in range(metadata.num_row_groups) if groups is None else groups:
        for k in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(k)
            if not any(f"{chunk.path_in_schema}.".startswith(f"{column}.") for column in columns):
                continue
            largest = max(largest, chunk.total_uncompressed_size)
            if largest > limit:
                raise UserError(
                    f"{path}: column {chunk.path_in_schema!r} unpacks to {largest} bytes, more than {limit}; write it "
                    "without compression"
                )
    return largest


def _unreadable(path: Place, error: Exception) -> UserError:
    return UserError(f"{path}: not a Parquet file that can be read ({one_line(error, 200)}); get it again")


def _picture(batch: pa.RecordBatch, column: str, i: int) -> tuple[pa.Buffer | None, str]:
    """(bytes, path) of one cell, without copying the bytes."""
    cell = _plain(batch.column(column)[i])
    if not pa.types.is_struct(cell.type):
        return cell.as_buffer(), ""
    if not cell.is_valid:
        return None, ""
    path = _value(cell["path"]) if cell.type.get_field_index("path") >= 0 else None
    return _plain(cell["bytes"]).as_buffer(), path if isinstance(path, str) else ""


def _plain(cell: pa.Scalar) -> pa.Scalar:
    """The value of a dictionary-encoded cell (pandas' Categorical); other cells unchanged."""
    return cell.value if pa.types.is_dictionary(cell.type) else cell


def _value(cell: pa.Scalar) -> Any:
    """A cell as a Python value. Text that is not valid UTF-8 is decoded as well as possible."""
    cell = _plain(cell)
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return decoded(cell.as_buffer().to_pybytes())


def _digest(data: pa.Buffer | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column can say what a picture shows: it holds text, or numbers or booleans that stand for text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(kind) for is_kind in (*texts, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean))


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Class names by column, from Hugging Face's metadata of columns that hold class numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {column: list(map(str, f["names"])) for column, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
