"""What a larger run will take, from what a smaller one took: hours, storage, yield and cost, stage by stage.

Every part of the larger run is given a time: for each of its samples one that was measured, and what a part takes
besides. The parts are then given to the places in their order, each to the place that is free first, as the engines do.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_schemas.errors import UserError
from data_schemas.io.storage import read_facts, url_to_fs
from pipeline.core.names import part_bounds
from pipeline.run import Run

MANY = 4096
"""Samples in a part above which the sum of their times is drawn as a whole, from the normal distribution."""


@dataclass(frozen=True)
class Measured:
    """What a stage took in the run that is there: ``seconds`` of its samples, ``apart`` seconds of a part besides, and
    once for each place ``load`` seconds, as for its model; ``bytes`` are those of its files, a sample."""

    stage: str
    seconds: Sequence[float]
    apart: float
    load: float
    bytes: float


def measured(run: Run) -> list[Measured]:
    """The stages of a finished run that take time. UserError if it has no times."""
    found = []
    for stage in run.stages():
        store, seconds, apart, size = run.store(stage.name), list[float](), list[float](), 0
        for part in run.parts():
            notes = store.notes(part)
            own = list(notes.get("samples", {}).values())
            seconds += own
            if "all" in notes:
                apart.append(notes["all"] - sum(own))
            for suffix in ("parquet", "tar", "notes.json"):
                path = store.path(part, suffix)
                size += store.fs.size(path) if store.fs.exists(path) else 0
        if not seconds or not apart:
            raise UserError(f"{run.config.run_url}: stage {stage.name} has no times; curate it with this version first")
        usual = max(0.0, statistics.median(apart))
        load = max(0.0, max(apart) - usual)
        found.append(Measured(stage.name, seconds, usual, load, size / run.config.samples))
    return found


def wall_seconds(
    stage: Measured, samples: int, part_size: int | None, places: int, seed: int = 0
) -> tuple[float, float]:
    """(seconds on the wall, seconds of all places together) of a stage with ``samples`` samples."""
    rng, known = np.random.default_rng(seed), np.array(stage.seconds)
    free = [stage.load] * places  # when each place is free, which is a heap
    busy = 0.0
    for begin, end in part_bounds(samples, part_size):
        count = end - begin
        if count > MANY:
            drawn = float(rng.normal(count * known.mean(), known.std() * count**0.5))
        else:
            drawn = float(rng.choice(known, count).sum())
        busy += drawn + stage.apart
        heapq.heapreplace(free, free[0] + drawn + stage.apart)
    return max(free), busy + places * stage.load


def estimate(run: Run, samples: int, places: int, price: float | None = None) -> dict[str, Any]:
    """Per stage and in all: hours of the places, hours on the wall, gigabytes; then the samples kept, and the cost.

    ``run`` is a finished run, whose times are used. ``places`` are parts made at the same time: one for each GPU where
    stages use GPUs. ``price`` is that of an hour of one place.
    """
    fs, root = url_to_fs(run.config.run_url)
    funnel = (read_facts(fs, f"{root}/metrics.json") or {}).get("funnel")
    if funnel is None:
        raise UserError(f"{run.config.run_url}: no finished curation is there to estimate from")
    stages = {}
    for stage in measured(run):
        wall, busy = wall_seconds(stage, samples, run.config.part_size, places, run.config.seed)
        stages[stage.stage] = {
            "seconds_per_sample": round(statistics.mean(stage.seconds), 4), "hours": busy / 3600,
            "hours_on_the_wall": wall / 3600, "gigabytes": stage.bytes * samples / 1e9,
        }  # fmt: skip
    totals = {key: sum(row[key] for row in stages.values()) for key in ("hours", "hours_on_the_wall", "gigabytes")}
    kept = samples * funnel["kept"] / funnel["planned"]
    cost = None if price is None else totals["hours_on_the_wall"] * places * price
    return {
        "run": run.config.run_url, "samples": samples, "places": places, "stages": stages, **totals,
        "kept": round(kept), "cost": cost, "cost_per_thousand_kept": cost and 1000 * cost / kept if kept else None,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """An estimate as lines of text."""
    lines = [f"{'stage':<12}{'s/sample':>10}{'hours':>12}{'on the wall':>14}{'GB':>10}"]
    for name, row in found["stages"].items():
        lines.append(_line(name, f"{row['seconds_per_sample']:.3f}", row))
    lines.append(_line("all", "", found))
    lines.append(f"{found['samples']:,} samples at {found['places']} places: about {found['kept']:,} kept")
    if found["cost"] is not None:
        thousand = found["cost_per_thousand_kept"]
        lines.append(f"cost {found['cost']:,.2f}" + (f", {thousand:,.2f} for a thousand kept" if thousand else ""))
    return "\n".join(lines)


def _line(name: str, seconds: str, row: dict[str, Any]) -> str:
    return f"{name:<12}{seconds:>10}{row['hours']:>12.3f}{row['hours_on_the_wall']:>14.3f}{row['gigabytes']:>10.2f}"
