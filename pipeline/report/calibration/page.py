"""Writing a calibration: its scores, a thresholds file, and one HTML page that needs no other files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from markupsafe import Markup
from PIL import Image

from data_schemas.io.storage import url_to_fs, write_file
from pipeline.config import CurationConfig
from pipeline.dataset.picture_reader import PictureReader
from pipeline.jobs import pool_digest
from pipeline.report.calibration.charts import contrast, kind_strips, rate_curves
from pipeline.report.calibration.figures import Candidate, RuleFigures
from pipeline.report.calibration.floor import spread_evenly
from pipeline.report.calibration.labels import KEPT, REJECTED
from pipeline.report.calibration.measure import Calibration, measure, table_schema
from pipeline.report.calibration.text import text_table, thresholds_text
from pipeline.report.charts import bound_text
from pipeline.report.planted import wilson
from pipeline.report.templates import fill
from pipeline.report.thumbnails import data_uri

SHOWN = 48
"""Samples shown for each rule."""

TARGET_SIDE, REFERENCE_SIDE = 200, 96
"""Longest sides of the embedded pictures, in pixels."""

Uri = Callable[[str, str, int], str | None]


def calibrate(config: CurationConfig, stage: str, floor_samples: int = 64) -> dict[str, str]:
    """Measure a stage of a run, print a table and write page, scores and thresholds. Returns their paths by name.

    Only parts that exist are used. Raises UserError if there are none, if the stage has no scores and rules, or if
    fewer than two samples have scores.
    """
    found = measure(config, stage, floor_samples)
    print(text_table(found))
    folder = f"{config.run_url}/calibration/{stage}"
    fs, root = url_to_fs(folder)
    scores = io.BytesIO()
    pq.write_table(table_schema(found.stage).table(found.table.to_dict("records")), scores, compression="zstd")
    reader = PictureReader(found.run, pool_digest(found.run))
    files = {
        "scores.parquet": scores.getvalue(),
        "thresholds.yaml": thresholds_text(found).encode(),
        "index.html": render(found, reader.picture, f"{folder}/thresholds.yaml").encode(),
    }
    for name, data in files.items():
        write_file(fs, f"{root}/{name}", data)
    paths = {"calibration": "index.html", "scores": "scores.parquet", "thresholds": "thresholds.yaml"}
    return {name: f"{folder}/{file}" for name, file in paths.items()}


def render(found: Calibration, picture: Callable[[str, str], Image.Image | None], thresholds: str) -> str:
    """The page as text. ``picture`` is PictureReader.picture, ``thresholds`` the path of the thresholds file."""

    @cache  # several rules show the same samples
    def uri(sample_id: str, name: str, side: int) -> str | None:
        shown = picture(sample_id, name)
        return None if shown is None else data_uri(shown, side)

    medians = found.table.groupby("kind")[list(found.separation())].median()
    return fill(
        "calibration/page.html.jinja",
        run=found.run.config.name,
        stage=found.stage.name,
        model=found.model,
        samples=found.samples,
        scored=int((found.table.kind == "run").sum()),
        floor=found.floor_samples,
        kept=found.figures[0].at(found.figures[0].rule.threshold).together,
        judged_by=", ".join(found.judged_by),
        labels=found.labelled_text(),
        bad=int((found.table.label == "bad").sum()),
        rules=[rule_view(figures, found, uri) for figures in found.figures],
        separation=[
            {"column": column, "auc": auc, **{kind: medians[column].get(kind, np.nan) for kind in ("run", "floor")}}
            for column, auc in found.separation().items()
        ],
        thresholds=thresholds,
    )


def rule_view(figures: RuleFigures, found: Calibration, uri: Uri) -> dict[str, Any]:
    """The charts, numbers, tables and samples of one rule, for the template."""
    rule = figures.rule
    bounds = [(rule.bound, rule.threshold, f"now {bound_text(rule.bound, rule.threshold)}")]
    if figures.suggested is not None and figures.suggested != rule.threshold:
        bounds.append((rule.bound, figures.suggested, f"suggested {figures.suggested:g}"))
    rows = [row_view(candidate, figures, found.samples) for candidate in figures.candidates]
    name = f"{rule.column}-{rule.bound}"
    bad = [score for seen in figures.kinds if seen.bad for score in seen.scores]
    svgs = {
        "histogram": contrast(figures.scores.tolist(), figures.floor.tolist(), bad, bounds, name),
        "strips": kind_strips(figures.kinds, bounds, f"{name}-kinds"),
        "curves": rate_curves(figures.curve, found.samples, bounds, f"{name}-rates"),
    }
    return {
        "reason": rule.reason,
        "column": rule.column,
        "sign": "≥" if rule.bound == "min" else "≤",
        "meaning": rule.meaning,
        "note": figures.note,
        **{key: Markup(svg) if svg else None for key, svg in svgs.items()},
        "auc": figures.auc,
        "label_auc": figures.label_auc,
        "labels": figures.candidates[0].rates,
        "kinds": figures.kinds,
        "now": next(row for row in rows if row["now"]),
        "suggested": next((row for row in rows if row["suggested"]), None),
        "rows": rows,
        "quantiles": figures.quantiles(),
        "board": board(figures, found.table[found.table.kind == "run"].set_index("sample_id"), uri),
    }


def row_view(candidate: Candidate, figures: RuleFigures, samples: int) -> dict[str, Any]:
    """One threshold as a row of the table. The yield is the share of all samples that pass all rules."""
    return {
        "threshold": f"{candidate.threshold:.4g}",
        "alone": candidate.alone,
        "alone_share": candidate.alone / samples,
        "together": candidate.together,
        "yield": candidate.together / samples,
        "yield_interval": wilson(candidate.together, samples),
        "floor_share": candidate.floor_share,
        "rates": candidate.rates,
        "now": candidate.threshold == figures.rule.threshold,
        "suggested": candidate.threshold == figures.suggested,
    }


def board(figures: RuleFigures, samples: pd.DataFrame, uri: Uri) -> list[dict[str, Any]]:
    """Samples from the lowest to the highest score, evenly spaced by rank, with what is known of each."""
    ordered = figures.scores.sort_values(kind="stable")
    rule, known = figures.rule, samples[["label", "labelled_by", "planted_fault"]].to_dict("index")
    return [
        {
            "sample_id": sample_id,
            "title": f"{score:.3f}",
            "lines": [],
            "passes": score >= rule.threshold if rule.bound == "min" else score <= rule.threshold,
            "tags": tags(known[sample_id]),
            "target": uri(sample_id, "target", TARGET_SIDE),
            "references": [uri(sample_id, f"reference_{i}", REFERENCE_SIDE) for i in range(2)],
        }
        for sample_id, score in spread_evenly([(str(i), float(score)) for i, score in ordered.items()], SHOWN)
    ]


def tags(sample: Mapping[Any, Any]) -> list[dict[str, str]]:
    """What is known of a sample: its planted fault, and what a person decided."""
    found = []
    if sample["planted_fault"] is not None:
        found.append({"kind": "fault", "text": f"planted: {sample['planted_fault']}"})
    if sample["labelled_by"] == "person":
        found.append({"kind": "person", "text": REJECTED if sample["label"] == "bad" else KEPT})
    return found
