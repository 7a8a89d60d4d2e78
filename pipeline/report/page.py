"""The report of a run: one HTML page that needs no other files and loads nothing from the network.

``write_report`` makes dictionaries from a finished run (here and in sample_cards.py) and charts (charts.py), which the
template report.html.jinja turns into HTML. The same input gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from importlib import resources
from numbers import Real
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from data_schemas.io.storage import url_to_fs, write_file
from pipeline.report.charts import histogram, training_curve
from pipeline.report.data import ReportData, View, decided, records, rules_by_column
from pipeline.report.sample_cards import generated_card, kept_cards, rejected_cards
from pipeline.report.text import as_float, as_text, count_text, interval_text, number_text, share_text, yaml_text

FUNNEL = ("planned", "made", "kept", "rejected", "undecided", "errors")
GENERATED_SHOWN, ERRORS_SHOWN = 24, 50


def write_report(data: ReportData, path: str) -> str:
    """Write the page to ``path`` (any fsspec URL) in one step and return ``path``."""
    fs, target = url_to_fs(path)
    write_file(fs, target, render(data).encode())
    return path


def render(data: ReportData) -> str:
    """The page as text. All strings from the data are escaped; only our own SVG is inserted as markup."""
    source = resources.files("pipeline.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=count_text, number=number_text, share=share_text, interval=interval_text)
    return environment.from_string(source).render(
        name=data.name,
        funnel=funnel_view(data),
        splits=data.metrics.get("splits") or {},
        planted=data.metrics.get("planted"),
        planted_in_shards=bool((data.config.get("shards") or {}).get("unfiltered")),
        histograms=histogram_views(data),
        kept=kept_cards(data),
        rejected=rejected_cards(data),
        errors=error_views(data.manifest),
        training=training_view(data),
        stages=stage_views(data.metrics.get("stages") or {}),
        config=yaml_text(data.config),
    )


# Views: dictionaries of values for the template


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
            [as_float(value) for value in decided(data.manifest, decision).get(column, [])]
            for decision in ("kept", "rejected")
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


# Training


def training_view(data: ReportData) -> View | None:
    """The loss curve, its last numbers, the evaluation, and generated pictures beside their targets."""
    if data.training is None:
        return None
    loss, val_loss, picture_loss = (series(data.training.log, key) for key in ("loss", "val_loss", "val_loss_target"))
    guesses = [value for _, value in series(data.training.log, "val_unigram_cross_entropy")]
    svg = training_curve(loss, val_loss, guesses[-1] if guesses else None, "training")
    speeds = sorted(value for _, value in series(data.training.log, "samples_per_s"))
    figures = {
        "steps": count_text(max((step for step, _ in loss + val_loss), default=None)),
        "last loss": number_text(loss[-1][1] if loss else None),
        "best validation loss": number_text(min((value for _, value in picture_loss or val_loss), default=None)),
        **({"with the reference copies": number_text(min(value for _, value in val_loss))} if picture_loss else {}),
        "guessing by token frequency": number_text(guesses[-1] if guesses else None),
        "samples per second": number_text(speeds[len(speeds) // 2] if speeds else None),
    }
    evaluation = {
        name: number_text(value)
        for name, value in data.training.evaluation.items()
        if isinstance(value, Real) and not isinstance(value, bool)
    }
    shown = data.training.samples[:GENERATED_SHOWN]
    rows = records(data.manifest[data.manifest["sample_id"].isin([sample_id for sample_id, _ in shown])])
    by_id = {str(row["sample_id"]): row for row in rows}
    return {
        "svg": Markup(svg) if svg else None,
        "of_other_shards": data.training.of_other_shards,
        "figures": figures,
        "evaluation": evaluation,
        "cards": [generated_card(data, i, by_id.get(i), picture) for i, picture in shown],
        "more": len(data.training.samples) - len(shown),
    }


def series(log: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the log's rows that have this key with a finite value."""
    points = [(as_float(row.get("step")), as_float(row[key])) for row in log if key in row]
    return [(step, value) for step, value in points if math.isfinite(step) and math.isfinite(value)]
