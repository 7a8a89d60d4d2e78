"""What a larger run will take, from what a smaller one with the same settings took."""

from __future__ import annotations

import statistics
from typing import Any

from data_schemas.errors import UserError
from data_schemas.io.storage import read_facts, url_to_fs
from pipeline.estimate.timing import Measured, whole
from pipeline.run import Run


def measured(run: Run) -> list[Measured]:
    """The stages of a finished run that take time. UserError if it has no times.

    In a run that used GPUs a place is a GPU: where several workers shared one, a sample counts with its share of their
    time. The times of stages without a GPU are those of one worker.
    """
    found = []
    for stage in run.stages():
        store, seconds, apart, shares, size = run.store(stage.name), list[float](), list[float](), list[float](), 0
        for part in run.parts():
            notes = store.notes(part)
            own = list(notes.get("samples", {}).values())
            seconds += own
            if "all" in notes:
                apart.append(notes["all"] - sum(own))
            if "gpu" in notes and sum(own):
                shares.append(notes["gpu"] / sum(own))
            for suffix in ("parquet", "tar", "notes.json"):
                path = store.path(part, suffix)
                size += store.fs.size(path) if store.fs.exists(path) else 0
        if not seconds or not apart:
            raise UserError(f"{run.config.run_url}: stage {stage.name} has no times; curate it with this version first")
        usual = max(0.0, statistics.median(apart))
        load = max(0.0, max(apart) - usual)
        if shares:
            share = statistics.median(shares)  # of the part that loaded the model it is larger
            seconds, usual = [taken * share for taken in seconds], usual * share
        found.append(Measured(stage.name, seconds, usual, load, size / run.config.samples, bool(shares)))
    return found


def estimate(run: Run, samples: int, places: int, price: float | None = None) -> dict[str, Any]:
    """What ``timing.whole`` tells, from the times and the yield of a finished run."""
    fs, root = url_to_fs(run.config.run_url)
    funnel = (read_facts(fs, f"{root}/metrics.json") or {}).get("funnel")
    if funnel is None:
        raise UserError(f"{run.config.run_url}: no finished curation is there to estimate from")
    share = funnel["kept"] / funnel["planned"]
    found = whole(measured(run), samples, run.config.part_size, places, run.config.seed, share, price)
    return {"run": run.config.run_url, **found}
