"""Making one part: reading what it is made from, running its stage, and storing the result.

``make_part`` needs only the job (config and fingerprints, which can be pickled) and can therefore run in any process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import pyarrow as pa

from data_schemas.tables import PLAN
from pipeline.core import review, sharing
from pipeline.core.inputs import Inputs
from pipeline.core.parts import Part, PartStore
from pipeline.core.review import Reviews
from pipeline.core.rules import decide, resolve_rules
from pipeline.dataset import publish
from pipeline.jobs import PartJob, cutout_reader, need_part, pool_rows, usable_references
from pipeline.planning import planning
from pipeline.references import cutouts
from pipeline.run import POOL_PART, Run, pool_sources


@dataclass(frozen=True)
class PartSummary:
    """The outcome of one part, small enough to be passed between processes and stored.

    ``digest`` identifies the part's content, ``counts`` has the samples by status, ``seconds`` the time spent on
    samples, ``gpu_seconds`` the part's share of a GPU's time.
    """

    stage: str
    part: str
    digest: str
    cached: bool
    counts: dict[str, int]
    seconds: float
    gpu_seconds: float = 0.0


PLANNED_AT_ONCE = 1024
"""Rows of the plan that become a table together: as dictionaries they take ten times the memory."""


def kept(job: PartJob) -> PartSummary | None:
    """The summary of a part that is complete and may be kept; None if it has to be made."""
    part = job.run.store(job.stage).read(job.part, job.made_from)
    return _summary(job, part, cached=True) if part is not None and job.may_keep(part) else None


Working = Callable[[Sequence[str]], None]
"""Is called with the ids of the samples that a stage is given next, and with none after the last."""


def make_part(job: PartJob, working: Working = lambda ids: None) -> PartSummary:
    """Return the summary of a part, after making it unless it is already complete."""
    began = time.perf_counter()
    store = job.run.store(job.stage)
    existing = store.read(job.part, job.made_from)
    if existing is not None and job.may_keep(existing):
        return _summary(job, existing, cached=True)
    makers: dict[str, Callable[[PartJob, PartStore], Part]] = {
        "references": _make_references, "plan": _make_plan, "decide": _make_decisions, "shards": publish.make_shard,
    }  # fmt: skip
    if job.stage in makers:
        return _summary(job, makers[job.stage](job, store), cached=False)
    return _summary(job, _make_scores(job, store, existing, working, began), cached=False)


def _make_references(job: PartJob, store: PartStore) -> Part:
    first = job.run.pool_parts().index(job.part) * POOL_PART
    sources = pool_sources(job.run)[first : first + POOL_PART]
    rows, members, seconds = cutouts.make_references(sources, job.run.config.references)
    return store.commit(job.part, rows, members, job.made_from, {"samples": seconds})


def _make_plan(job: PartJob, store: PartStore) -> Part:
    begin, end = job.run.bounds()[job.part]
    rows = _plan_table(job.run, job.shared).slice(begin, end - begin).to_pylist()
    return store.commit(job.part, rows, None, job.made_from)


@lru_cache(maxsize=1)
def _plan_table(run: Run, pool: str) -> pa.Table:
    """The whole plan. It is made once in each process, because pairs and splits depend on all references."""
    rows = planning.planned(pool_rows(run), run.config.planning, run.config.samples, run.config.seed)
    some = iter(lambda: list(islice(rows, PLANNED_AT_ONCE)), [])
    return pa.concat_tables([PLAN.table(own) for own in some])


def _make_scores(job: PartJob, store: PartStore, existing: Part | None, working: Working, began: float) -> Part:
    stage = job.run.stage(job.stage)
    inputs = stage_inputs(job, stage.reads)
    samples, failed = inputs.samples()
    kept_rows: dict[str, dict] = {}
    kept_files: dict[str, dict[str, bytes]] = {}
    if existing is not None and job.retry_errors:  # only failed samples are made again
        kept_rows = {r["sample_id"]: r for r in existing.rows() if r["status"] == "ok"}
        kept_files = {i: dict(store.pictures(job.part, existing).of(i)) for i in kept_rows}
    todo = [s for s in samples if s.sample_id not in kept_rows]
    failed = {i: f for i, f in failed.items() if i not in kept_rows}
    turn = sharing.GPU.begin()
    try:
        rows, saved, seconds = stage.run(todo, failed, working, job.doubted, job.given_up)
    finally:
        shared = sharing.GPU.end(turn)
    row_of = {row["sample_id"]: row for row in rows} | kept_rows
    order = [s.sample_id for s in samples]
    members = {i: f for i in order if (f := saved.get(i) or kept_files.get(i))} if stage.saves_pictures else None
    timing = {
        "samples": seconds,
        "latency": {s.sample_id: s.latency for s in todo if s.latency is not None},
        "all": round(time.perf_counter() - began, 4),  # reading, and loading the model, as well
    }
    if todo and stage.on_gpu():
        timing["gpu"] = round(shared * job.run.config.gpu_share(job.stage), 4)
    return store.commit(job.part, [row_of[i] for i in order], members, job.made_from, timing)


def _make_decisions(job: PartJob, store: PartStore) -> Part:
    stages = job.run.stages()
    parts = {s.name: need_part(job.run, s.name, job.part) for s in stages}
    frames = {name: part.table.to_pandas() for name, part in parts.items()}
    rules = resolve_rules(stages, job.run.config.decide.all_thresholds())
    rows = decide(frames, rules, Reviews(job.run.config.run_url).rows)
    return store.commit(job.part, rows, None, job.made_from)


def stage_inputs(job: PartJob, reads: Sequence[str]) -> Inputs:
    """The inputs of a job: its part of each stage in ``reads``, the cut-outs, and reviews if the stage uses them."""
    own = [name for name in reads if name != "references"]
    parts = {name: need_part(job.run, name, job.part) for name in own}
    reviews = {}
    if job.stage in review.STAGES:
        reviews = Reviews(job.run.config.run_url).of(parts["plan"].table.column("sample_id").to_pylist())
    return Inputs(
        parts,
        {name: job.run.store(name).pictures(job.part, part) for name, part in parts.items()},
        lambda reference_id: cutout_reader(job.run, job.shared)(reference_id, "cutout.png"),
        reviews,
        lambda: usable_references(job.run, job.shared),
    )


def _summary(job: PartJob, part: Part, cached: bool) -> PartSummary:
    column = next((c for c in ("status", "decision") if c in part.table.column_names), None)
    counts = Counter(part.table.column(column).to_pylist()) if column else Counter({"ok": part.table.num_rows})
    notes = job.run.store(job.stage).notes(job.part)
    seconds, gpu = sum(notes.get("samples", {}).values()), notes.get("gpu", 0.0)
    return PartSummary(job.stage, job.part, part.digest, cached, dict(counts), round(seconds, 3), gpu)
