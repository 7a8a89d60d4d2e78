"""Writing a calibration: its scores, a thresholds file, and one HTML page that needs no other files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup
from PIL import Image

from data_schemas.io.storage import url_to_fs, write_file
from pipeline.config import CurationConfig
from pipeline.dataset.picture_reader import PictureReader
from pipeline.jobs import pool_digest
from pipeline.report.calibration import (
    Calibration,
    RuleFigures,
    measure,
    spread_evenly,
    table_schema,
    text_table,
    thresholds_text,
)
from pipeline.report.charts import bound_text, contrast
from pipeline.report.sample_cards import data_uri
from pipeline.report.text import count_text, number_text, share_text
from pipeline.run import Run

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

    source = resources.files("pipeline.report").joinpath("calibration.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=count_text, number=number_text, share=share_text)
    faults = planted_faults(found.run)
    medians = found.table.groupby("kind")[list(found.separation())].median()
    return environment.from_string(source).render(
        run=found.run.config.name,
        stage=found.stage.name,
        model=found.model,
        samples=found.samples,
        scored=int((found.table.kind == "run").sum()),
        floor=found.floor_samples,
        kept=found.figures[0].at(found.figures[0].rule.threshold).together,
        judged_by=", ".join(found.judged_by),
        rules=[rule_view(figures, found.samples, uri, faults) for figures in found.figures],
        planted=sum(sample_id in faults for sample_id in found.table[found.table.kind == "run"].sample_id),
        separation=[
            {"column": column, "auc": auc, **{kind: medians[column].get(kind, np.nan) for kind in ("run", "floor")}}
            for column, auc in found.separation().items()
        ],
        thresholds=thresholds,
    )


def planted_faults(run: Run) -> dict[str, str]:
    """Sample id -> planted fault, of the samples that have one, in the parts that exist."""
    parts = [part for name in run.parts() if (part := run.store("synthesis").read(name)) is not None]
    rows = [row for part in parts for row in part.rows()]
    return {row["sample_id"]: row["planted_fault"] for row in rows if row.get("planted_fault") not in (None, "none")}


def rule_view(figures: RuleFigures, samples: int, uri: Uri, faults: Mapping[str, str]) -> dict[str, Any]:
    """The chart, numbers, tables and samples of one rule, for the template. ``faults`` are the planted ones."""
    rule = figures.rule
    bounds = [(rule.bound, rule.threshold, f"now {bound_text(rule.bound, rule.threshold)}")]
    if figures.suggested is not None and figures.suggested != rule.threshold:
        bounds.append((rule.bound, figures.suggested, f"suggested {figures.suggested:g}"))
    svg = contrast(figures.scores.tolist(), figures.floor.tolist(), bounds, f"{rule.column}-{rule.bound}")
    rows = [
        {
            "threshold": f"{c.threshold:.4g}",
            "alone": c.alone,
            "alone_share": c.alone / samples,
            "together": c.together,
            "together_share": c.together / samples,
            "floor_share": c.floor_share,
            "now": c.threshold == rule.threshold,
            "suggested": c.threshold == figures.suggested,
        }
        for c in figures.candidates
    ]
    return {
        "reason": rule.reason,
        "column": rule.column,
        "sign": "≥" if rule.bound == "min" else "≤",
        "meaning": rule.meaning,
        "note": figures.note,
        "svg": Markup(svg) if svg else None,
        "auc": figures.auc,
        "now": next(row for row in rows if row["now"]),
        "suggested": next((row for row in rows if row["suggested"]), None),
        "rows": rows,
        "quantiles": figures.quantiles(),
        "board": board(figures, uri, faults),
    }


def board(figures: RuleFigures, uri: Uri, faults: Mapping[str, str]) -> list[dict[str, Any]]:
    """Samples from the lowest to the highest score, evenly spaced by rank."""
    ordered = figures.scores.sort_values(kind="stable")
    rule = figures.rule
    return [
        {
            "sample_id": sample_id,
            "score": f"{score:.3f}",
            "fault": faults.get(sample_id),
            "passes": score >= rule.threshold if rule.bound == "min" else score <= rule.threshold,
            "target": uri(sample_id, "target", TARGET_SIDE),
            "references": [uri(sample_id, f"reference_{i}", REFERENCE_SIDE) for i in range(2)],
        }
        for sample_id, score in spread_evenly([(str(i), float(score)) for i, score in ordered.items()], SHOWN)
    ]
