"""Descriptions of table columns, schemas made of them, and the function that checks a table against its schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from data_schemas.errors import UserError


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, a sentence that says what it means, its unit, and the values it may hold.

    ``unit`` is a plain word ("pixels", "cosine", "fraction", "id", "code", "text"). ``low`` and ``high`` are inclusive
    bounds of a number. ``one_of`` lists the allowed values of a code. Both texts are stored in the Parquet files.
    """

    name: str
    type: pa.DataType
    meaning: str
    unit: str
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    one_of: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TableSchema:
    """A named and versioned table.

    Values of the column ``key`` are unique; if ``open``, further columns are allowed.
    """

    name: str
    version: int
    columns: tuple[Column, ...]
    key: str | None = None
    open: bool = False

    def arrow(self) -> pa.Schema:
        """The Arrow schema.

        Each field's metadata holds meaning and unit; the table's metadata holds name and version.
        """
        fields = [pa.field(c.name, c.type, c.nullable, {"meaning": c.meaning, "unit": c.unit}) for c in self.columns]
        return pa.schema(fields, {"table": self.name, "schema_version": str(self.version)})

    def table(self, rows: Sequence[dict]) -> pa.Table:
        """Rows (dicts by column name) as an Arrow table. Raises UserError for a key that is not a column."""
        names = {c.name for c in self.columns}
        for number, row in enumerate(rows):
            if extra := sorted(set(row) - names):
                raise UserError(f"table {self.name}, row {number}: unknown column {extra[0]!r}")
        return pa.Table.from_pylist(list(rows), schema=self.arrow())


def validate(table: pa.Table, schema: TableSchema, source: str) -> pa.Table:
    """Check ``table`` against ``schema`` and return it unchanged.

    Raises UserError that names ``source`` (the file), the column and the first bad row. Reasons are a missing, unknown
    or wrongly typed column, a null in a column that allows none, a value outside its bounds or codes, a repeated key,
    or a table that was written with another version of the schema.
    """
    metadata = table.schema.metadata or {}
    stored_version = metadata.get(b"schema_version")
    if stored_version is not None and stored_version != str(schema.version).encode():
        raise UserError(
            f"{source}: table {schema.name} has schema version {stored_version.decode()}, this program reads "
            f"version {schema.version}; make it again or use the program that wrote it"
        )
    names = [c.name for c in schema.columns]
    for extra in table.column_names:
        if extra not in names and not schema.open:
            raise UserError(f"{source}: column {extra!r} is not part of table {schema.name}")
    for column in schema.columns:
        if column.name not in table.column_names:
            raise UserError(f"{source}: column {column.name!r} of table {schema.name} is missing")
        _check_column(table.column(column.name), column, source)
    if schema.key is not None:
        keys = table.column(schema.key).to_pylist()
        seen: set = set()
        for row, key in enumerate(keys):
            if key in seen:
                raise UserError(f"{source}: column {schema.key!r}, row {row}: {key!r} stands there twice")
            seen.add(key)
    return table


def _check_column(values: pa.ChunkedArray, column: Column, source: str) -> None:
    where = f"{source}: column {column.name!r}"
    if values.type != column.type:
        raise UserError(f"{where} is {values.type}, expected {column.type}")
    if not column.nullable and values.null_count:
        raise UserError(f"{where}, row {_first(pc.is_null(values))}: no value, but one is required")
    if column.one_of is not None:
        bad = pc.invert(pc.is_in(values, value_set=pa.array([*column.one_of, None], type=column.type)))
        _refuse(values, bad, where, f"is not one of {', '.join(column.one_of)}")
    if pa.types.is_floating(values.type):
        _refuse(values, pc.invert(pc.is_finite(values)), where, "is not a finite number")
    if column.low is not None:
        _refuse(values, pc.less(values, column.low), where, f"is below {column.low}")
    if column.high is not None:
        _refuse(values, pc.greater(values, column.high), where, f"is above {column.high}")


def _refuse(values: pa.ChunkedArray, bad: pa.ChunkedArray, where: str, why: str) -> None:
    row = _first(bad)
    if row >= 0:
        raise UserError(f"{where}, row {row}: {values[row].as_py()!r} {why}")


def _first(mask: pa.ChunkedArray) -> int:
    """The first row where ``mask`` is true (null counts as false), or -1."""
    return pc.index(pc.fill_null(mask, False), True).as_py()
