"""Conditions on samples, as people type them: ``similarity_min < 0.5``, ``reasons contains identity``.

    similarity_min < 0.5        also <=, >, >=, =, != of numbers
    relation = riding           = and != of texts
    prompt contains red         in any case
    relation in riding, beside  one of several
    error_message is missing    or: is there

Of a column of lists, such as ``reasons``, one entry has to meet the condition; for != none may.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from pipeline.dataset.frames.columns import Columns, need_column

COMPARED: dict[str, Callable[..., Any]] = {
    "<=": pc.less_equal, ">=": pc.greater_equal, "!=": pc.not_equal, "=": pc.equal, "<": pc.less, ">": pc.greater,
}  # fmt: skip
UNARY = ("is missing", "is there")
_FORM = re.compile(
    r"\s*(?P<column>[\w.]+)\s*(?P<operator><=|>=|!=|==?|<|>|\b(?:contains|in|is\s+missing|is\s+there)\b)"
    r"\s*(?P<value>.*?)\s*",
    re.DOTALL | re.IGNORECASE,
)
YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
LONGEST = 1000
HOW = "write a column, one of =, !=, <, <=, >, >=, contains, in, is missing, is there, and a value"


@dataclass(frozen=True)
class Condition:
    """A column, an operator and the text of a value, as they were typed."""

    column: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {self.value}".rstrip()


def parse(text: str) -> Condition:
    """The condition that a text states. Raises UserError if it states none."""
    found = _FORM.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        raise UserError(f"condition {one_line(text, 100)!r}: {HOW}")
    operator = " ".join(found["operator"].lower().split())
    condition = Condition(found["column"], "=" if operator == "==" else operator, found["value"])
    if (operator in UNARY) == bool(condition.value):
        wanted = "takes no value" if operator in UNARY else "lacks a value"
        raise UserError(f"condition {one_line(text, 100)!r}: {operator!r} {wanted}; {HOW}")
    return condition


def met(columns: Columns, conditions: Sequence[Condition], rows: np.ndarray) -> np.ndarray:
    """Those of the rows whose samples meet all conditions. Raises UserError for one that its column cannot meet."""
    for condition in conditions:
        need_column(columns, condition.column)
    for condition in conditions:
        rows = rows[_met(columns.column(condition.column).take(pa.array(rows)), condition)]
    return rows


def _met(values: pa.ChunkedArray, condition: Condition) -> np.ndarray:
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _met_by_entry(values, condition)
    if condition.operator in UNARY:
        return (pc.is_null if condition.operator == "is missing" else pc.is_valid)(values).to_numpy()
    if not (_is_text(kind) or _is_number(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"{condition}: the column holds {kind}; it can only be missing or there")
    if condition.operator == "contains":
        texts = values if _is_text(kind) else pc.cast(values, pa.string())
        found = pc.match_substring(texts, condition.value, ignore_case=True)
    else:
        several = condition.value.split(",") if condition.operator == "in" else [condition.value]
        given = _given([text.strip() for text in several], kind, condition)
        own = pc.cast(values, given.type, safe=False)  # a large number is compared as the nearest fraction
        isin = condition.operator == "in"
        found = pc.is_in(own, value_set=given) if isin else COMPARED[condition.operator](own, given[0])
    if condition.operator == "!=":  # a missing value is not this one
        found = pc.fill_null(found, True)
    return pc.fill_null(found, False).to_numpy()


def _met_by_entry(values: pa.ChunkedArray, condition: Condition) -> np.ndarray:
    lists = values.combine_chunks()
    empty = pc.fill_null(pc.equal(pc.list_value_length(lists), 0), True).to_numpy(zero_copy_only=False)
    if condition.operator in UNARY:
        return empty if condition.operator == "is missing" else ~empty
    none_may = condition.operator == "!="
    own = Condition(condition.column, "=", condition.value) if none_may else condition
    entries = pa.chunked_array([pc.list_flatten(lists)])
    parents = pc.list_parent_indices(lists).to_numpy()
    found = np.zeros(len(lists), dtype=bool)
    found[parents[_met(entries, own)]] = True
    return ~found if none_may else found


def _given(texts: Sequence[str], kind: pa.DataType, condition: Condition) -> pa.Array:
    """The values that a condition names, of the type in which they and the column are compared."""
    if _is_text(kind):
        return pa.array(texts, kind)
    if pa.types.is_boolean(kind):
        if bad := next((text for text in texts if text.lower() not in YES_NO), None):
            raise UserError(f"{condition}: {bad!r} is neither yes nor no")
        return pa.array([YES_NO[text.lower()] for text in texts])
    if (
        pa.types.is_integer(kind)
        and kind != pa.uint64()
        and all(re.fullmatch(r"[+-]?\d{1,19}", text) for text in texts)
    ):
        return pa.array([max(-(2**63), min(int(text), 2**63 - 1)) for text in texts], pa.int64())
    return pa.array([_number(text, condition) for text in texts], pa.float64())


def _number(text: str, condition: Condition) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UserError(f"{condition}: {text!r} is not a number")
    return number


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
