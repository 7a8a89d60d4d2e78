"""The funnel, the scores, the errors and the stages of a run as dictionaries of values for the page's template."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from pipeline.report.charts import histogram
from pipeline.report.data import ReportData, View, decided, numbers, records, rules_by_column
from pipeline.report.text import as_float, as_text

FUNNEL = ("planned", "made", "kept", "rejected", "undecided", "errors")
ERRORS_SHOWN = 50


def funnel_view(data: ReportData) -> View:
    """The bars of the funnel, each with its share of the planned samples."""
    funnel = data.metrics.get("funnel") or {}
    planned = as_float(funnel.get("planned"))

    def bar(label: str, count: object, kind: str, meaning: str = "") -> View:
        share = as_float(count) / planned if planned > 0 else 0.0
        return {"label": label, "count": count, "share": share, "kind": kind, "meaning": meaning}

    rejected_by_reason = funnel.get("rejected_by_reason") or {}
    meanings = {rule.reason: rule.meaning for rule in data.rules}
    order = {reason: position for position, reason in enumerate(meanings)}
    reasons = sorted(rejected_by_reason, key=lambda r: (-rejected_by_reason[r], order.get(r, len(order)), r))
    return {
        "totals": {key: funnel.get(key, 0) for key in FUNNEL},
        "kept_share": as_float(funnel.get("kept")) / planned if planned > 0 else math.nan,
        "road": [bar(key, funnel.get(key, 0), key) for key in FUNNEL[:3]],
        "lost": [bar(key, funnel.get(key, 0), key) for key in FUNNEL[3:]],
        "reasons": [bar(r, rejected_by_reason[r], "rejected", meanings.get(r, "")) for r in reasons],
    }


def histogram_views(data: ReportData) -> list[View]:
    """One chart for each scored column, with the thresholds of all rules that use it."""
    views = []
    for number, (column, rules) in enumerate(rules_by_column(data.rules).items()):
        kept, rejected = (
            numbers(decided(data.manifest, decision), column).tolist() for decision in ("kept", "rejected")
        )
        bounds = [(rule.bound, rule.threshold) for rule in rules]
        svg = histogram(kept, rejected, bounds, f"scores-{number}-{column}")
        views.append({"column": column, "rules": rules, "svg": Markup(svg) if svg else None})
    return views


def error_views(manifest: pd.DataFrame) -> View:
    """The first errors with their messages, and the number of further ones."""
    errors = decided(manifest, "error")
    keys = ("sample_id", "error_stage", "error_code", "error_message")
    rows = [{key: as_text(row[key]) for key in keys} for row in records(errors.head(ERRORS_SHOWN))]
    return {"rows": rows, "more": len(errors) - len(rows)}


def stage_views(stages: Mapping[str, Mapping[str, Any]]) -> list[View]:
    """The seconds and parts of each stage, with its share of the slowest stage's time."""
    slowest = max((as_float(stage.get("seconds")) for stage in stages.values()), default=0.0)
    return [
        {
            "name": name,
            "seconds": stage.get("seconds"),
            "parts": stage.get("parts"),
            "cached_parts": stage.get("cached_parts"),
            "share": as_float(stage.get("seconds")) / slowest if slowest > 0 else 0.0,
        }
        for name, stage in stages.items()
    ]
