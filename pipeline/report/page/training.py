"""The trainer's and the evaluator's results as values for the page's template."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from markupsafe import Markup

from pipeline.report.charts import training_curve
from pipeline.report.data import ReportData, View, records
from pipeline.report.page.cards import generated_card
from pipeline.report.text import as_float, count_text, number_text

GENERATED_SHOWN = 24


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
