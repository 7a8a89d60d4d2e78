"""How far a run is, also while it is being made and from another machine: read from its parts, which tell all."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_schemas.io.storage import parse_facts
from pipeline.config import CurationConfig
from pipeline.core.parts import NOT_WHOLE, PartStore
from pipeline.run import Run
from pipeline.upkeep.lock import Lock

AT_ONCE = 256
"""Files that are asked for together: a bucket answers them at the same time."""


def status(run: Run) -> dict[str, Any]:
    """Parts of each stage by state, its samples, its errors by code and the hours of its work; the stage that is being
    made, with its samples a second and the seconds it has left; who is at work; and the hours of work for a thousand
    kept samples.

    ``gpu_hours`` are those of GPUs, however many parts were made on one at the same time. ``worker_hours`` are those of
    workers in stages, or parts of stages, that used no GPU.
    """
    stages: dict[str, dict[str, Any]] = {}
    working: dict[str, Any] | None = None
    bounds = run.bounds()
    scored = [stage.name for stage in run.stages()]
    kept = 0
    for name in run.order()[:-1]:  # how many shards there will be, the decisions say
        wanted = run.pool_parts() if name == "references" else run.parts()
        store = run.store(name)
        there = {part: when for part, when in _written(store).items() if part in wanted}
        row: dict[str, Any] = {
            "parts": len(wanted), "done": 0, "left": 0, "with_errors": 0, "errors": {}, "gpu_hours": 0.0,
            "worker_hours": 0.0,
        }  # fmt: skip
        damaged: set[str] = set()
        if name in scored:
            row |= _hours(store, list(there)) | _errors(store, list(there), damaged)
        if name == "decide":
            tables = _tables(store, list(there), damaged, "decision")
            kept = sum(table["decision"].to_pylist().count("kept") for table in tables)
        there = {part: when for part, when in there.items() if part not in damaged}
        row |= {"done": len(there), "left": len(wanted) - len(there)}
        if name != "references":
            row["samples"] = sum(bounds[part][1] - bounds[part][0] for part in there)
        stages[name] = row
        if working is None and len(there) < len(wanted):
            working = {"stage": name} | _pace(there, bounds, run.config)
    hours = {unit: sum(row[unit] for row in stages.values()) for unit in ("gpu_hours", "worker_hours")}
    whole, owner = working is None, Lock(run.config.run_url).owner()
    return {
        "run": run.config.run_url, "owner": owner.told() if owner else None, "stages": stages, "working": working,
        "kept": kept if whole else None, **hours,
        **{f"{unit}_per_thousand_kept": 1000 * taken / kept if whole and kept else None
           for unit, taken in hours.items()},
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


def _hours(store: PartStore, parts: list[str]) -> dict[str, float]:
    """Hours of GPUs, and hours of workers in parts that used none. Notes that are damaged tell none."""
    gpu = worker = 0.0
    for _, data in _contents(store, parts, "notes.json"):
        notes = parse_facts(data, store.root) or {}
        try:
            own, of_workers = float(notes.get("gpu", 0.0)), sum(notes.get("samples", {}).values())
        except (TypeError, ValueError, AttributeError):
            continue
        gpu += own
        worker += 0.0 if "gpu" in notes else of_workers
    return {"gpu_hours": gpu / 3600, "worker_hours": worker / 3600}


def _errors(store: PartStore, parts: list[str], damaged: set[str]) -> dict[str, Any]:
    codes: Counter[str] = Counter()
    touched = 0
    for table in _tables(store, parts, damaged, "status", "error_code"):
        own = [row["error_code"] for row in table.to_pylist() if row["status"] == "error"]
        codes.update(own)
        touched += bool(own)
    return {"with_errors": touched, "errors": dict(codes.most_common())}


def _tables(store: PartStore, parts: list[str], damaged: set[str], *columns: str) -> Iterator[pa.Table]:
    """These columns of parts. Parts that cannot be read, which a curation makes again, are added to ``damaged``."""
    for part, data in _contents(store, parts, "parquet"):
        try:
            table = pq.read_table(io.BytesIO(data), columns=list(columns), page_checksum_verification=True)
            table = table.select(columns)  # KeyError if it lacks one
        except NOT_WHOLE:
            damaged.add(part)
            continue
        yield table


def _contents(store: PartStore, parts: list[str], suffix: str) -> Iterator[tuple[str, bytes]]:
    """The files of parts that are there; those that go meanwhile are left out."""
    for first in range(0, len(parts), AT_ONCE):
        paths = [store.path(part, suffix) for part in parts[first : first + AT_ONCE]]
        for path, data in store.fs.cat(paths, on_error="omit").items():
            yield path.rpartition("/")[2].removesuffix(f".{suffix}"), data


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
    lines = [f"{'stage':<12}{'parts':>14}{'samples':>10}{'GPU hours':>12}{'worker hours':>14}  errors"]
    for name, row in found["stages"].items():
        errors = ", ".join(f"{code} {count}" for code, count in row["errors"].items())
        parts, samples = f"{row['done']}/{row['parts']}", f"{row.get('samples', '')}"
        hours = f"{_figure(row['gpu_hours']):>12}{_figure(row['worker_hours']):>14}"
        lines.append(f"{name:<12}{parts:>14}{samples:>10}{hours}  {errors}".rstrip())
    if (working := found["working"]) is not None:
        pace = working["samples_per_second"]
        left = f": {pace:g} samples/s, {working['seconds_left']} s left" if pace else ""
        lines.append(f"{working['stage']} is not whole{left}")
    elif found["kept"] is not None:
        lines.append(f"whole; kept {found['kept']}{_per_thousand(found)}")
    if found["owner"]:
        lines.append(f"at work: {found['owner']}")
    return "\n".join(lines)


def _figure(hours: float) -> str:
    return f"{hours:.3f}" if hours else "-"


def _per_thousand(found: dict[str, Any]) -> str:
    gpu, worker = found["gpu_hours_per_thousand_kept"], found["worker_hours_per_thousand_kept"]
    told = [
        f"{hours:.3f} {unit}" for hours, unit in ((gpu, "GPU-hours"), (worker, "worker-hours without a GPU")) if hours
    ]
    return f", for a thousand {' and '.join(told)}" if told else ""
