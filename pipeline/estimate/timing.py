"""Hours, gigabytes and cost of a run, from what a sample takes in each of its stages.

Every part is given a time: for each of its samples one that was measured, and what a part takes besides. The parts are
then given to the places in their order, each to the place that is free first, as the engines do.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.core.names import part_bounds

MANY = 4096
"""Samples in a part above which the sum of their times is drawn as a whole, from the normal distribution."""
SIMULATED = 100_000
"""Parts above which they are not given to places one by one: all places are then at work until the last parts."""


@dataclass(frozen=True)
class Measured:
    """What a stage takes: ``seconds`` of samples, ``apart`` seconds of a part besides, and once for each place ``load``
    seconds, as for its model; ``bytes`` are those of its files, a sample. ``gpu``: whether it computes on one.

    ``alone``: its work is done in one process, whatever the number of places. ``source`` says where the figures come
    from.
    """

    stage: str
    seconds: Sequence[float]
    apart: float
    load: float
    bytes: float
    gpu: bool = False
    alone: bool = False
    source: str = ""


@lru_cache(maxsize=4)
def part_sizes(samples: int, part_size: int | None) -> np.ndarray:
    """The number of samples of each part."""
    return np.diff(np.array(part_bounds(samples, part_size)), axis=1)[:, 0]


def wall_seconds(
    stage: Measured, samples: int, part_size: int | None, places: int, seed: int = 0
) -> tuple[float, float]:
    """(seconds on the wall, seconds of all places together) of a stage with ``samples`` samples."""
    rng, known = np.random.default_rng(seed), np.array(stage.seconds)
    sizes = part_sizes(samples, part_size)
    mean, spread = known.mean(), known.std()
    if len(sizes) > SIMULATED or not spread:
        times = rng.normal(sizes * mean, spread * sizes**0.5) + stage.apart
    else:
        times = np.array([
            (rng.choice(known, n).sum() if n <= MANY else rng.normal(n * mean, spread * n**0.5)) + stage.apart
            for n in sizes.tolist()
        ])  # fmt: skip
    busy = float(times.sum()) + places * stage.load
    if len(times) > SIMULATED:
        return stage.load + float(times.sum() / places + times.max()), busy
    free = [stage.load] * places  # when each place is free, which is a heap
    for taken in times.tolist():
        heapq.heapreplace(free, free[0] + taken)
    return max(free), busy


def whole(
    stages: Sequence[Measured], samples: int, part_size: int | None, places: int, seed: int, share: float,
    price: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Per stage and in all: hours of the places, hours on the wall, gigabytes; then the samples kept, and the cost.

    ``places`` are parts made at the same time: one for each GPU where stages use GPUs. ``share`` of the samples is
    kept. ``price`` is that of an hour of one place, which is paid while stages without a GPU are at work too.
    """
    rows: dict[str, dict[str, Any]] = {}
    for stage in stages:
        wall, busy = wall_seconds(stage, samples, part_size, 1 if stage.alone else places, seed)
        rows[stage.stage] = {
            "seconds_per_sample": round(statistics.mean(stage.seconds), 6), "hours": busy / 3600,
            "hours_on_the_wall": wall / 3600, "gigabytes": stage.bytes * samples / 1e9, "gpu": stage.gpu,
            "source": stage.source,
        }  # fmt: skip
    totals = {key: sum(row[key] for row in rows.values()) for key in ("hours", "hours_on_the_wall", "gigabytes")}
    kept = samples * share
    cost = None if price is None else totals["hours_on_the_wall"] * places * price
    return {
        "samples": samples, "places": places, "stages": rows, **totals,
        "gpu_hours": sum(row["hours"] for row in rows.values() if row["gpu"]),
        "kept": round(kept), "cost": cost, "cost_per_thousand_kept": cost and 1000 * cost / kept if kept else None,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """An estimate as lines of text."""
    lines = [f"{'stage':<12}{'s/sample':>10}{'hours':>12}{'on the wall':>14}{'GB':>10}"]
    for name, row in found["stages"].items():
        source = f"  {row['source']}" if row["source"] else ""
        lines.append(_line(name, f"{row['seconds_per_sample']:.3f}", row) + source)
    lines.append(_line("all", "", found))
    gpus = f", {found['gpu_hours']:,.1f} hours of work on GPUs" if found["gpu_hours"] else ""
    lines.append(f"{found['samples']:,} samples at {found['places']} places: about {found['kept']:,} kept{gpus}")
    if found["cost"] is not None:
        thousand = found["cost_per_thousand_kept"]
        lines.append(f"cost {found['cost']:,.2f}" + (f", {thousand:,.2f} for a thousand kept" if thousand else ""))
    return "\n".join([*lines, *found.get("notes", [])])


def _line(name: str, seconds: str, row: dict[str, Any]) -> str:
    return f"{name:<12}{seconds:>10}{row['hours']:>12.3f}{row['hours_on_the_wall']:>14.3f}{row['gigabytes']:>10.2f}"
