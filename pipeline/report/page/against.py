"""The run compared with an earlier one: the funnel before and after, and what entered and left the dataset, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from pipeline.dataset.opened import open_dataset
from pipeline.report.charts import bound_text
from pipeline.report.data import Against, ReportData, View, records
from pipeline.report.page.nearest import Uri, thumbnail, uris
from pipeline.report.text import reasons_of
from pipeline.upkeep.diff import diff

SHOWN = 6
"""Samples shown of those that entered, and of those that left."""
LINES = 40
"""Most settings that are listed."""
OUTCOMES = ("planned", "kept", "rejected", "undecided", "error")


def compare(earlier: str, run: str) -> Against:
    """The earlier run, or dataset, compared with the newest dataset of the run. UserError if one cannot be read."""
    old, new = open_dataset(earlier), open_dataset(run)
    before = old.table(["sample_id", "decision", "reasons"]).to_pandas()
    return Against(old.name, diff(old, new), before)


def against_view(data: ReportData) -> View | None:
    """The comparison as values for the template; None if the run is compared with nothing."""
    if data.against is None:
        return None
    found, before, after = data.against.found, data.against.before, data.manifest
    joined = after.merge(before, on="sample_id", suffixes=("", "_before"))
    was, now = joined.decision_before == "kept", joined.decision == "kept"
    entered, left = joined[~was & now], joined[was & ~now]
    uri = uris(data)
    return {
        "name": data.against.name,
        "version": found["old"]["version"],
        "common": len(joined),
        "added": len(after) - len(joined),
        "dropped": len(before) - len(joined),
        "funnel": _funnel(before, after),
        "entered": _moved(entered, uri, "reasons_before"),
        "left": _moved(left, uri, "reasons"),
        "reasons": _reasons(entered, left),
        "thresholds": [
            {"reason": rule["reason"], "column": rule["column"], "before": _bound(rule["old"]),
             "now": _bound(rule["new"])}
            for rule in found["thresholds"]
        ],
        "stages": found["stages"],
        "settings": found["settings"][:LINES],
        "more_settings": max(0, len(found["settings"]) - LINES),
    }  # fmt: skip


def _funnel(before: pd.DataFrame, after: pd.DataFrame) -> list[View]:
    """How many samples each outcome and each reason had, and has."""
    sides = [Counter(frame.decision) | Counter(planned=len(frame)) for frame in (before, after)]
    rows = [_row(outcome, "", *(side[outcome] for side in sides)) for outcome in OUTCOMES]
    reasons = [Counter(frame[frame.decision == "rejected"].reasons.explode()) for frame in (before, after)]
    names = sorted(reasons[0].keys() | reasons[1].keys(), key=lambda name: (-reasons[1][name], str(name)))
    at = OUTCOMES.index("rejected") + 1
    return [*rows[:at], *(_row(name, "reason", *(side[name] for side in reasons)) for name in names), *rows[at:]]


def _row(label: str, kind: str, before: int, now: int) -> View:
    change = "–" if now == before else f"{now - before:+,}".replace("-", "−")
    return {"label": label, "kind": kind, "before": before, "now": now, "change": change}


def _moved(rows: pd.DataFrame, uri: Uri, why: str) -> View:
    """Samples that entered or left: how many, and the first of them with the reasons of the column ``why``."""
    return {
        "count": len(rows),
        "shown": [
            thumbnail(row, uri) | {"lines": [", ".join(reasons_of({"reasons": row[why]})) or "undecided"]}
            for row in records(rows.head(SHOWN))
        ],
    }


def _reasons(entered: pd.DataFrame, left: pd.DataFrame) -> list[View]:
    """For each reason the samples that entered without it, and those that left for it."""
    gone, come = Counter(entered.reasons_before.explode().dropna()), Counter(left.reasons.explode().dropna())
    names = sorted(gone.keys() | come.keys(), key=lambda name: (-(gone[name] + come[name]), str(name)))
    return [{"reason": name, "entered": gone[name], "left": come[name]} for name in names]


def _bound(side: list[Any] | None) -> str:
    return "no rule" if side is None else bound_text(str(side[0]), float(side[1]))
