"""Making one part: reading what it is made from, running its stage, and storing the result.

``make_part`` needs only the job (config and fingerprints, which can be pickled) and can therefore run in any process.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from data_schemas.errors import UserError
from data_schemas.tables import PLAN
from pipeline.core import review, sharing
from pipeline.core.inputs import Inputs
from pipeline.core.parts import Part, PartStore, join_digests
from pipeline.core.review import Reviews
from pipeline.core.rules import decide
from pipeline.dataset import publish
from pipeline.jobs import PartJob, cutout_reader, need_part, pool_rows
from pipeline.planning import planning
from pipeline.references import copies, cutouts
from pipeline.run import Run, pool_sources


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


STAYING = ("reference_0_id", "reference_1_id", "other_reference_id", "mirror_0", "mirror_1")
DRAWN = ["index", "sample_id", "split", "relation", *STAYING[:2], "subject_0_id", "subject_1_id"]
"""The columns of a plan that tell whether a sample can stay, and those that tell what is drawn after it."""
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
    if (summary := kept(job)) is not None:
        return summary
    began = time.perf_counter()
    store = job.run.store(job.stage)
    makers: dict[str, Callable[[PartJob, PartStore], Part]] = {
        "references": _make_references, "plan": _make_plan, "decide": _make_decisions, "shards": publish.make_shard,
    }  # fmt: skip
    if job.stage in makers:
        return _summary(job, makers[job.stage](job, store), cached=False)
    return _summary(job, _make_scores(job, store, working, began), cached=False)


def _make_references(job: PartJob, store: PartStore) -> Part:
    sources = pool_sources(job.run.config).get(job.part, [])
    if cutouts.sources_digest(sources) != job.made_from:
        raise UserError("references.pool: its pictures changed while they were read; run it again")
    before: dict[str, tuple[dict, Mapping[str, bytes]]] = {}
    existing = None if job.force else store.read(job.part)
    if existing is not None:
        pictures = store.pictures(job.part, existing)
        ok = (row for row in existing.rows() if row["status"] == "ok")
        before = {row["reference_id"]: (row, pictures.of(row["reference_id"])) for row in ok}
    rows, members, seconds = cutouts.make_references(sources, job.run.config.references, before)
    return store.commit(job.part, rows, members, job.made_from, {"samples": seconds})


_drawing = threading.Lock()


def _make_plan(job: PartJob, store: PartStore) -> Part:
    begin, end = job.run.bounds()[job.part]
    with _drawing:  # the other threads wait for the first, which draws for all
        tables = [_new_rows(job.run, job.shared)]
    if (existing := store.read(job.part)) is not None:
        tables.append(existing.table.filter(_stay(existing, _mirrors(job.run, job.shared))))
    rows = {
        row["index"]: row
        for table in tables
        for row in table.filter((pc.field("index") >= begin) & (pc.field("index") < end)).to_pylist()
    }
    return store.commit(job.part, [rows[index] for index in range(begin, end)], None, job.made_from)


@lru_cache(maxsize=1)
def _new_rows(run: Run, shared: str) -> pa.Table:
    """All rows of the plan that earlier ones leave open. They are drawn once in each process, as each depends on those
    in front of it."""
    references, mirrors = pool_rows(run), _mirrors(run, shared)
    before: dict[int, dict] = {}
    for part in run.parts():
        if (found := run.store("plan").read(part)) is not None:
            rows = found.table.select(DRAWN).filter(_stay(found, mirrors)).to_pylist()
            before |= {row["index"]: row for row in rows}
    drawn = planning.planned(
        references, run.config.planning, run.config.samples, run.config.seed, copies.groups(references), before
    )
    new = (row for row in drawn if row["index"] not in before)
    some = iter(lambda: list(islice(new, PLANNED_AT_ONCE)), [])
    return pa.concat_tables([PLAN.table([]), *(PLAN.table(own) for own in some)])


def plan_inputs(run: Run, pool: str) -> tuple[dict[str, str], str]:
    """The plan's parts, each with the digest of its input, and the digest of all that the plan is made from.

    A part of an earlier plan that can stay keeps its own input. ``pool`` is the digest of the reference pool.
    """
    there, inputs = [pool], {}
    mirrors = _mirrors(run, pool)
    for part, (begin, end) in run.bounds().items():
        inputs[part] = join_digests([pool, str(begin), str(end)])
        if (found := run.store("plan").read(part)) is not None:
            there.append(found.digest)
            if found.table.num_rows == end - begin and pc.all(_stay(found, mirrors)).as_py():
                inputs[part] = found.made_from
    return inputs, join_digests(there)


@lru_cache(maxsize=2)
def _mirrors(run: Run, shared: str) -> dict[str, bool]:
    """Whether a target may show a usable reference mirrored, by its id. ``shared`` tells one pool from the next."""
    return {row["reference_id"]: row["mirror"] for row in pool_rows(run) if row["status"] == "ok"}


def _stay(part: Part, mirrors: Mapping[str, bool]) -> pa.Array:
    """Which rows of a part of the plan the pool still has the references for."""
    columns = [part.table[name].to_pylist() for name in STAYING]
    return pa.array([
        mirrors.get(one) == one_mirrored and mirrors.get(two) == two_mirrored and (other is None or other in mirrors)
        for one, two, other, one_mirrored, two_mirrored in zip(*columns, strict=True)
    ], pa.bool_())  # fmt: skip


def _make_scores(job: PartJob, store: PartStore, working: Working, began: float) -> Part:
    stage = job.run.stage(job.stage)
    inputs = stage_inputs(job, stage.reads)
    samples, failed = inputs.samples()
    digests = inputs.digests()
    rows, files = _made_before(job, store, digests)
    todo = [s for s in samples if s.sample_id not in rows]
    failed = {i: f for i, f in failed.items() if i not in rows}
    turn = sharing.GPU.begin()
    try:
        made, saved, seconds = stage.run(todo, failed, working, job.doubted, job.given_up)
    finally:
        shared = sharing.GPU.end(turn)
    rows |= {row["sample_id"]: row for row in made}
    members = {i: f for i in digests if (f := saved.get(i) or files.get(i))} if stage.saves_pictures else None
    timing = {
        "samples": seconds,
        "latency": {s.sample_id: s.latency for s in todo if s.latency is not None},
        "all": round(time.perf_counter() - began, 4),  # reading, and loading the model, as well
    }
    if todo and stage.on_gpu():
        timing["gpu"] = round(shared * job.run.config.gpu_share(job.stage), 4)
    return store.commit(job.part, [rows[i] for i in digests], members, job.made_from, timing, digests)


def _made_before(
    job: PartJob, store: PartStore, digests: Mapping[str, str]
) -> tuple[dict[str, dict], dict[str, dict[str, bytes]]]:
    """The rows and pictures, by sample id, of samples that need not be made again, as their input is what it was."""
    existing = None if job.force else store.read(job.part)
    if existing is None:
        return {}, {}
    same = {i for i, digest in existing.inputs.items() if digests.get(i) == digest}
    rows = {
        row["sample_id"]: row for row in existing.rows()
        if row["sample_id"] in same and not (job.retry_errors and row["status"] == "error")
    }  # fmt: skip
    pictures = store.pictures(job.part, existing)
    return rows, {i: dict(pictures.of(i)) for i in rows}


def _make_decisions(job: PartJob, store: PartStore) -> Part:
    parts = {s.name: need_part(job.run, s.name, job.part) for s in job.run.stages()}
    frames = {name: part.table.to_pandas() for name, part in parts.items()}
    rows = decide(frames, job.run.rules, Reviews(job.run.config.run_url).rows)
    return store.commit(job.part, rows, None, job.made_from)


def stage_inputs(job: PartJob, reads: Sequence[str]) -> Inputs:
    """The inputs of a job: its part of each stage in ``reads``, the cut-outs, and reviews if the stage uses them."""
    own = [name for name in reads if name != "references"]
    parts = {name: need_part(job.run, name, job.part) for name in own}
    reviews = {}
    if job.stage in review.STAGES:
        said = Reviews(job.run.config.run_url).of(parts["plan"].table.column("sample_id").to_pylist())
        reviews = {i: {column: row[column] for column in review.STAGES[job.stage]} for i, row in said.items()}
    return Inputs(
        parts,
        {name: job.run.store(name).pictures(job.part, part) for name, part in parts.items()},
        lambda reference_id: cutout_reader(job.run, job.shared)(reference_id, "cutout.png"),
        reviews,
    )


def _summary(job: PartJob, part: Part, cached: bool) -> PartSummary:
    column = next((c for c in ("status", "decision") if c in part.table.column_names), None)
    counts = Counter(part.table.column(column).to_pylist()) if column else Counter({"ok": part.table.num_rows})
    notes = job.run.store(job.stage).notes(job.part)
    seconds, gpu = sum(notes.get("samples", {}).values()), notes.get("gpu", 0.0)
    return PartSummary(job.stage, job.part, part.digest, cached, dict(counts), round(seconds, 3), gpu)
