"""The floor of a calibration: samples scored against references of other subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from pipeline.core.stage import Sample, Stage
from pipeline.jobs import PartJob, pool_digest
from pipeline.making import stage_inputs
from pipeline.run import Run

WRONG = [f"{kind}_{i}_{what}" for i in range(2) for kind, what in
         (("reference", "id"), ("reference", "name"), ("reference", "category"), ("subject", "id"))]  # fmt: skip
"""Columns of the plan that a floor sample takes from another sample."""

T = TypeVar("T")


def floor_rows(
    run: Run, stage: Stage, parts: Sequence[str], plan: Sequence[dict], usable: set[str], count: int
) -> list[dict]:
    """Scores of up to ``count`` samples against wrong references, from parts that are spread over the run.

    Samples on which the stage fails are left out, and samples that share a subject with every other sample.
    """
    pool = pool_digest(run)
    row_of = {row["sample_id"]: k for k, row in enumerate(plan)}
    rows: list[dict] = []
    chosen = spread_evenly(parts, math.ceil(count * len(parts) / run.config.samples))
    for k, part in enumerate(chosen):
        inputs = stage_inputs(PartJob(run, stage.name, part, "", pool), stage.reads)
        samples = [s for s in inputs.samples()[0] if s.sample_id in usable]
        wanted = math.ceil((count - len(rows)) / (len(chosen) - k))
        wrong = [wrong_sample(s, plan, row_of[s.sample_id]) for s in spread_evenly(samples, wanted)]
        made, _, _ = stage.run([s for s in wrong if s is not None], {})
        plans = {s.sample_id: s.plan for s in wrong if s is not None}
        rows += [
            {**row, "kind": "floor", **{key: plans[row["sample_id"]][key] for key in WRONG}}
            for row in made
            if row["status"] == "ok"
        ]
    return rows


def wrong_sample(sample: Sample, plan: Sequence[dict], row: int) -> Sample | None:
    """The sample with the references of another one that shares none of its subjects; None if there is no such sample.

    ``row`` is its index in the plan. The search starts half a plan away, so that the samples get different references,
    and the same ones every time.
    """
    own = {sample.plan["subject_0_id"], sample.plan["subject_1_id"]}
    for step in range(len(plan)):
        donor = plan[(row + len(plan) // 2 + step) % len(plan)]
        if not own & {donor["subject_0_id"], donor["subject_1_id"]}:
            wrong = {**sample.plan, **{key: donor[key] for key in WRONG}}
            return replace(sample, rows={**sample.rows, "plan": wrong}, saved={})
    return None


def spread_evenly(things: Sequence[T], count: int) -> list[T]:
    """``count`` of the things at even distances, including the first and the last; all if there are fewer."""
    chosen = np.linspace(0, len(things) - 1, min(count, len(things))).round().astype(int)
    return [things[k] for k in chosen.tolist()]
