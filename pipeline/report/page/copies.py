"""Duplicates among the reference pictures: equal ones, of which one is used, and groups of near-copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.references.copies import connected, near_pairs
from pipeline.report.data import ReportData, View
from pipeline.report.text import as_text
from pipeline.report.thumbnails import data_uri

MOST_COMPARED = 10_000
"""Pictures of a pool that are compared for the page, which takes some five seconds; of a larger pool none are."""
GROUPS_SHOWN, MEMBERS_SHOWN, EQUAL_SHOWN = 12, 8, 20
SIDE = 128


def copies_view(data: ReportData) -> View | None:
    """Groups of near-copies with their pictures, the largest first, and the equal ones; None without references."""
    rows = data.references
    if not rows:
        return None
    equal = [row for row in rows if row.get("error_code") == "duplicate"]
    usable = [row for row in rows if row["status"] == "ok"]
    compared = len(usable) <= MOST_COMPARED
    groups = near_groups(usable) if compared else []
    return {
        "pictures": len(usable),
        "compared": compared,
        "most_compared": MOST_COMPARED,
        "groups": [[_member(row, data) for row in group[:MEMBERS_SHOWN]] for group in groups[:GROUPS_SHOWN]],
        "left_out": [max(0, len(group) - MEMBERS_SHOWN) for group in groups[:GROUPS_SHOWN]],
        "count": len(groups),
        "copies": sum(len(group) for group in groups),
        "equal": [as_text(row.get("error_message")) for row in equal[:EQUAL_SHOWN]],
        "equal_count": len(equal),
        "apart": data.metrics.get("apart"),
    }


def near_groups(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows that near-copies connect, largest group first, each group in the order of the rows."""
    pairs = list(near_pairs(rows))
    labels = connected(pairs, len(rows))
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted({row for pair in pairs for row in pair}):
        groups.setdefault(labels[row], []).append(rows[row])
    return sorted(groups.values(), key=lambda group: -len(group))


def _member(row: Mapping[str, Any], data: ReportData) -> View:
    picture = data.reference(str(row["reference_id"]))
    return {
        "name": as_text(row.get("name")),
        "category": as_text(row.get("category")),
        "source": as_text(row.get("source")),
        "uri": None if picture is None else data_uri(picture, SIDE),
    }
