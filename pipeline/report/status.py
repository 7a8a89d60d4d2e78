"""How far a run is, also while it is being made and from another machine: read from its parts, which tell all."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import pyarrow.parquet as pq

from data_schemas.io.storage import read_facts, url_to_fs
from pipeline.config import CurationConfig
from pipeline.core.parts import PartStore
from pipeline.run import Run
from pipeline.upkeep.lock import Lock


def status(run: Run) -> dict[str, Any]:
    """Parts and samples of each stage, its errors by code and the hours of its work; the stage that is being made, with
    its samples a second and the seconds it has left; who is at work; and the hours of work for a thousand kept
    samples."""
    stages: dict[str, dict[str, Any]] = {}
    working: dict[str, Any] | None = None
    bounds = run.bounds()
    scored = [stage.name for stage in run.stages()]
    for name in run.order()[:-1]:  # how many shards there will be, the decisions say
        wanted = run.pool_parts() if name == "references" else run.parts()
        store = run.store(name)
        there = {part: when for part, when in _written(store).items() if part in wanted}
        row: dict[str, Any] = {"parts": len(wanted), "done": len(there), "errors": {}, "hours": 0.0}
        if name in scored:
            for part in there:
                row["hours"] += sum(store.notes(part).get("samples", {}).values()) / 3600
            row["errors"] = dict(_errors(store, list(there)).most_common())
        if name != "references":
            row["samples"] = sum(bounds[part][1] - bounds[part][0] for part in there)
        stages[name] = row
        if working is None and len(there) < len(wanted):
            working = {"stage": name} | _pace(there, bounds, run.config)
    fs, root = url_to_fs(run.config.run_url)
    funnel = (read_facts(fs, f"{root}/metrics.json") or {}).get("funnel", {})
    owner = Lock(run.config.run_url).owner()
    hours = sum(row["hours"] for row in stages.values())
    kept = funnel.get("kept") if working is None else None
    return {
        "run": run.config.run_url, "owner": owner.told() if owner else None, "stages": stages, "working": working,
        "kept": kept,
        "hours_per_thousand_kept": 1000 * hours / kept if kept else None,
    }  # fmt: skip


def _written(store: PartStore) -> dict[str, float]:
    """The parts that are there, each with the time at which it was written, in seconds since 1970."""
    try:
        files = store.fs.ls(store.root, detail=True)
    except FileNotFoundError:
        return {}
    found = {}
    for file in files:
        name = str(file["name"]).rpartition("/")[2]
        if name.endswith(".parquet") and not name.startswith("."):
            when = file.get("mtime") or file.get("LastModified") or 0.0
            found[name.removesuffix(".parquet")] = when.timestamp() if isinstance(when, datetime) else float(when)
    return found


def _errors(store: PartStore, parts: list[str]) -> Counter[str]:
    codes: Counter[str] = Counter()
    for part in parts:
        with store.fs.open(store.path(part, "parquet"), "rb") as file:
            table = pq.read_table(file, columns=["status", "error_code"])
        codes.update(row["error_code"] for row in table.to_pylist() if row["status"] == "error")
    return codes


def _pace(there: dict[str, float], bounds: dict[str, tuple[int, int]], config: CurationConfig) -> dict[str, Any]:
    """Samples a second since each worker had written its first part; when that was begun, nobody knows."""
    order, first = sorted(there, key=lambda part: there[part]), config.workers
    span = there[order[-1]] - there[order[first - 1]] if len(order) > first else 0.0
    made = [bounds[part][1] - bounds[part][0] for part in order if part in bounds]
    if span <= 0 or not made:
        return {"samples_per_second": None, "seconds_left": None}
    pace = sum(made[first:]) / span
    return {"samples_per_second": round(pace, 3), "seconds_left": round((config.samples - sum(made)) / pace)}


def told(found: dict[str, Any]) -> str:
    """A status as lines of text."""
    lines = [f"{'stage':<12}{'parts':>14}{'samples':>10}{'hours':>9}  errors"]
    for name, row in found["stages"].items():
        errors = ", ".join(f"{code} {count}" for code, count in row["errors"].items())
        parts, samples = f"{row['done']}/{row['parts']}", f"{row.get('samples', '')}"
        lines.append(f"{name:<12}{parts:>14}{samples:>10}{row['hours']:>9.3f}  {errors}".rstrip())
    if (working := found["working"]) is not None:
        pace = working["samples_per_second"]
        left = f": {pace:g} samples/s, {working['seconds_left']} s left" if pace else ""
        lines.append(f"{working['stage']} is not whole{left}")
    elif found["kept"] is not None:
        hours = found["hours_per_thousand_kept"]
        lines.append(f"whole; kept {found['kept']}" + (f", {hours:.3f} hours of work for a thousand" if hours else ""))
    if found["owner"]:
        lines.append(f"at work: {found['owner']}")
    return "\n".join(lines)
