"""What run.json and the manifest say without the machine, the accounts and the people that they came from."""

from __future__ import annotations

import io
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.io.text import without_folders

HIDDEN = "***"
PEOPLE = ("reviewer", "review_reason")
"""Columns of the manifest that tell who decided, and in which words."""
_SECRET = re.compile(r"(^|_)(key|token|password|secret)s?$", re.IGNORECASE)
_PLACE = re.compile(r"\s*(~|/|\.{1,2}/|[A-Za-z][A-Za-z0-9+.-]*://)")


def unnamed(facts: Any) -> Any:
    """Plain values in which a path or an address is cut to its last part, behind "…/".

    Texts under a key that is named like a secret become ``***``. Names of pools, models and packages stay.
    """
    if isinstance(facts, dict):
        return {
            unnamed(key): HIDDEN if isinstance(value, str) and _SECRET.search(str(key)) else unnamed(value)
            for key, value in facts.items()
        }
    if isinstance(facts, list):
        return [unnamed(value) for value in facts]
    if not isinstance(facts, str):
        return facts
    if _PLACE.match(facts):
        return f"…/{facts.partition('?')[0].rstrip('/').rpartition('/')[2]}"
    return without_folders(facts)


def manifest_bytes(table: pa.Table, with_reviewers: bool) -> bytes:
    """The manifest as Parquet, by default with PEOPLE empty. Texts name no folder of a machine."""
    for index, field in enumerate(table.schema):
        if field.name in PEOPLE and not with_reviewers:
            table = table.set_column(index, field, pa.nulls(len(table), field.type))
        elif pa.types.is_string(field.type):
            texts = [None if text is None else without_folders(text) for text in table.column(index).to_pylist()]
            table = table.set_column(index, field, pa.array(texts, field.type))
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer, compression="zstd")
    return buffer.getvalue()
