"""A table that is wrong is refused with the file, the column and the row."""

import pyarrow as pa
import pytest

from data_schemas import tables
from data_schemas.errors import UserError
from data_schemas.schema import Column, TableSchema, validate

CATS = TableSchema(
    "cats",
    2,
    (
        Column("id", pa.string(), "Name.", "id"),
        Column("weight", pa.float64(), "Mass.", "kilograms", nullable=True, low=0, high=20),
        Column("coat", pa.string(), "Colour.", "code", one_of=("black", "red")),
    ),
    key="id",
)
ROWS = [{"id": "a", "weight": 4.0, "coat": "red"}, {"id": "b", "weight": None, "coat": "black"}]


def test_a_good_table_passes_and_carries_meaning_unit_and_version():
    table = validate(CATS.table(ROWS), CATS, "cats.parquet")
    assert table.schema.field("weight").metadata == {b"meaning": b"Mass.", b"unit": b"kilograms"}
    assert table.schema.metadata[b"schema_version"] == b"2"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weight": 21.0}, r"cats.parquet: column 'weight', row 1: 21.0 is above 20"),
        ({"weight": -1.0}, r"cats.parquet: column 'weight', row 1: -1.0 is below 0"),
        ({"weight": float("nan")}, r"column 'weight', row 1: nan is not a finite number"),
        ({"coat": "blue"}, r"column 'coat', row 1: 'blue' is not one of black, red"),
        ({"coat": None}, r"column 'coat', row 1: no value, but one is required"),
        ({"id": "a"}, r"column 'id', row 1: 'a' stands there twice"),
    ],
)
def test_a_bad_value_is_named(change, expected):
    rows = [ROWS[0], {**ROWS[1], **change}]
    table = pa.Table.from_pylist(rows, schema=pa.schema([f.with_nullable(True) for f in CATS.arrow()]))
    with pytest.raises(UserError, match=expected):
        validate(table, CATS, "cats.parquet")


def test_missing_unknown_and_mistyped_columns_are_named():
    table = CATS.table(ROWS)
    with pytest.raises(UserError, match="column 'coat' of table cats is missing"):
        validate(table.drop_columns(["coat"]), CATS, "f")
    with pytest.raises(UserError, match="column 'tail' is not part of table cats"):
        validate(table.append_column("tail", pa.array([1, 2])), CATS, "f")
    with pytest.raises(UserError, match="column 'weight' is string, expected double"):
        validate(table.set_column(1, "weight", pa.array(["4", None])), CATS, "f")
    with pytest.raises(UserError, match="schema version 1, this program reads version 2"):
        validate(table.replace_schema_metadata({"schema_version": "1"}), CATS, "f")


def test_every_column_of_every_table_has_a_meaning_and_a_unit():
    verdicts = [
        tables.verdict_schema(name.lower(), 1, getattr(tables, name))
        for name in ("SYNTHESIS", "MATTING", "SEMANTICS", "IDENTITY")
    ]
    for schema in (tables.REFERENCES, tables.PLAN, tables.DECIDE, tables.SHARD_INDEX, tables.MANIFEST, *verdicts):
        for column in schema.columns:
            assert column.meaning.endswith("."), f"{schema.name}.{column.name}"
            assert column.unit, f"{schema.name}.{column.name}"
