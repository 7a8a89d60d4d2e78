"""The samples that lie nearest to each threshold: what a slightly other threshold would decide otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from pipeline.report.charts import bound_text, number
from pipeline.report.data import ReportData, RuleLine, View, numbers, records
from pipeline.report.text import as_float, as_text
from pipeline.report.thumbnails import data_uri

EACH_SIDE = 3
TARGET_SIDE, REFERENCE_SIDE = 144, 72
"""Longest sides of the embedded pictures, in pixels."""

Uri = Callable[[str, str, int], str | None]


def uris(data: ReportData) -> Uri:
    """A function that gives a sample's picture by name as a thumbnail of a side; None if it was never made."""

    @cache  # a sample can lie near several thresholds
    def uri(sample_id: str, name: str, side: int) -> str | None:
        picture = data.picture(sample_id, name)
        return None if picture is None else data_uri(picture, side)

    return uri


def edge_views(data: ReportData) -> list[View]:
    """For each rule, up to EACH_SIDE samples that just fail it and as many that just pass, nearest first."""
    uri = uris(data)
    return [_edge(data, rule, uri) for rule in data.rules]


def _edge(data: ReportData, rule: RuleLine, uri: Uri) -> View:
    scores = numbers(data.manifest, rule.column)
    passes = scores >= rule.threshold if rule.bound == "min" else scores <= rule.threshold
    sides = {
        "failing": nearest(scores, rule.threshold, np.isfinite(scores) & ~passes),
        "passing": nearest(scores, rule.threshold, np.isfinite(scores) & passes),
    }
    return {
        "reason": rule.reason,
        "column": rule.column,
        "bound": bound_text(rule.bound, rule.threshold),
        "meaning": rule.meaning,
        **{
            side: [_figure(row, rule, uri) for row in records(data.manifest.iloc[rows])] for side, rows in sides.items()
        },
    }


def nearest(scores: np.ndarray, threshold: float, chosen: np.ndarray) -> list[int]:
    """The chosen rows whose scores are nearest to the threshold, nearest first, the earlier of two equal ones."""
    rows = np.flatnonzero(chosen)
    order = np.argsort(np.abs(scores[rows] - threshold), kind="stable")
    return rows[order[:EACH_SIDE]].tolist()


def _figure(row: dict[str, Any], rule: RuleLine, uri: Uri) -> View:
    score = as_float(row[rule.column])
    off = score - rule.threshold
    where = "on it" if off == 0 else f"{number(abs(off))} {'above' if off > 0 else 'below'}"
    return thumbnail(row, uri) | {
        "title": number(score),
        "lines": [where, as_text(row.get("decision"))],
        "passes": rule.passes(score),
    }


def thumbnail(row: dict[str, Any], uri: Uri) -> View:
    """A sample as a small figure: its target, its two references, and its planted fault."""
    sample_id, fault = str(row["sample_id"]), as_text(row.get("planted_fault"))
    return {
        "sample_id": sample_id,
        "title": "",
        "lines": [],
        "passes": row.get("decision") == "kept",
        "tags": [{"kind": "fault", "text": f"planted: {fault}"}] if fault not in ("", "none") else [],
        "target": uri(sample_id, "target", TARGET_SIDE),
        "references": [uri(sample_id, f"reference_{i}", REFERENCE_SIDE) for i in range(2)],
    }
