"""The curation: run every stage in order, and have an engine make the parts that do not exist yet.

The engine here makes parts in threads; Prefect's flow brings its own (flows/engine.py). Both call ``make_part``, which
needs only the job (config and fingerprints, which can be pickled) and can therefore run in any process.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial

from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io import files
from data_schemas.io.storage import reaching
from data_schemas.settings import suggest
from pipeline import models, remembered
from pipeline.backends import build_stages
from pipeline.config import CurationConfig
from pipeline.core import review
from pipeline.core.parts import Part, PartStore, join_digests
from pipeline.core.progress import StageProgress
from pipeline.core.review import Reviews
from pipeline.core.rules import decide, resolve_rules
from pipeline.core.stage import Inputs
from pipeline.dataset import publish
from pipeline.jobs import PartJob, cutout_reader, need_part, pool_digest, pool_rows, usable_references
from pipeline.planning import planning
from pipeline.references import cutouts, pools
from pipeline.run import POOL_PART, Run, pool_sources


@dataclass(frozen=True)
class PartSummary:
    """The outcome of one part, small enough to be passed between processes and stored.

    ``digest`` identifies the part's content, ``counts`` has the samples by status, ``seconds`` the time spent on
    samples.
    """

    stage: str
    part: str
    digest: str
    cached: bool
    counts: dict[str, int]
    seconds: float


def make_part(job: PartJob) -> PartSummary:
    """Return the summary of a part, after making it unless it is already complete."""
    store = job.run.store(job.stage)
    existing = store.read(job.part, job.made_from)
    if existing is not None and job.may_keep(existing):
        return _summary(job, existing, cached=True)
    makers: dict[str, Callable[[PartJob, PartStore], Part]] = {
        "references": _make_references, "plan": _make_plan, "decide": _make_decisions, "shards": publish.make_shard,
    }  # fmt: skip
    if job.stage in makers:
        return _summary(job, makers[job.stage](job, store), cached=False)
    return _summary(job, _make_scores(job, store, existing), cached=False)


def _make_references(job: PartJob, store: PartStore) -> Part:
    first = job.run.pool_parts().index(job.part) * POOL_PART
    sources = pool_sources(job.run)[first : first + POOL_PART]
    rows, members, seconds = cutouts.make_references(sources, job.run.config.references)
    return store.commit(job.part, rows, members, job.made_from, {"samples": seconds})


def _make_plan(job: PartJob, store: PartStore) -> Part:
    size = job.run.config.part_size
    k = job.run.parts().index(job.part)
    rows = _plan_rows(job.run, job.shared)
    return store.commit(job.part, rows[k * size : (k + 1) * size], None, job.made_from)


@lru_cache(maxsize=2)
def _plan_rows(run: Run, pool: str) -> list[dict]:
    """The whole plan. It is made once in each process, because pairs and splits depend on all references."""
    return planning.make_plan(pool_rows(run), run.config.planning, run.config.samples, run.config.seed)


def _make_scores(job: PartJob, store: PartStore, existing: Part | None) -> Part:
    stage = job.run.stage(job.stage)
    inputs = stage_inputs(job, stage.reads)
    samples, failed = inputs.samples()
    kept_rows: dict[str, dict] = {}
    kept_files: dict[str, dict[str, bytes]] = {}
    if existing is not None and job.retry_errors:  # only failed samples are made again
        kept_rows = {r["sample_id"]: r for r in existing.rows() if r["status"] == "ok"}
        kept_files = {i: dict(store.pictures(job.part, existing).of(i)) for i in kept_rows}
    todo = [s for s in samples if s.sample_id not in kept_rows]
    rows, saved, seconds = stage.run(todo, {i: f for i, f in failed.items() if i not in kept_rows})
    row_of = {row["sample_id"]: row for row in rows} | kept_rows
    order = [s.sample_id for s in samples]
    members = {i: f for i in order if (f := saved.get(i) or kept_files.get(i))} if stage.saves_pictures else None
    timing = {"samples": seconds, "latency": {s.sample_id: s.latency for s in todo if s.latency is not None}}
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
    seconds = sum(job.run.store(job.stage).notes(job.part).get("samples", {}).values())
    return PartSummary(job.stage, job.part, part.digest, cached, dict(counts), round(seconds, 3))


Engine = Callable[[Sequence[PartJob], StageProgress], list[PartSummary]]


def thread_engine(jobs: Sequence[PartJob], progress: StageProgress) -> list[PartSummary]:
    """Make the parts of one stage in threads. Summaries are in the order of the jobs.

    After an error or an interrupt no further part is started; parts in progress are finished and kept.
    """
    pool = ThreadPoolExecutor(jobs[0].run.config.workers if jobs else 1)
    try:
        futures = [pool.submit(make_part, job) for job in jobs]
        for future in as_completed(futures):
            progress.advance(future.result())
        return [future.result() for future in futures]
    except KeyboardInterrupt:
        try:
            progress.line(f"stopping after the parts at work ({progress.done} of {len(jobs)} done); Ctrl-C leaves now")
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:  # safe, because an unfinished part does not exist on disk
            os._exit(130)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class CurationResult:
    """The paths of a run's results and the summaries of its parts by stage."""

    run: Run
    summaries: dict[str, list[PartSummary]]
    pool_digest: str
    dataset_url: str
    manifest_url: str


def check_inputs(config: CurationConfig) -> None:
    """Raise one UserError that names every missing model and reference pool, before any work is done."""
    problems = []
    checks: list[Callable[[], object]] = [partial(models.require, build_stages(config))]
    checks += [partial(pools.require, pool) for pool in config.references.pools()]
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(". ".join(problems))


def curate(
    config: CurationConfig,
    engine: Engine = thread_engine,
    again: str | None = None,
    retry_errors: bool = False,
) -> CurationResult:
    """Run every stage. Parts that are complete are not made again.

    ``again`` names a stage to make again, together with all later stages. ``retry_errors`` makes failed samples again.
    Raises UserError for mistakes that the user can correct.
    """
    check_inputs(config)
    for line in cutouts.skipped(config.references):
        print(line, file=sys.stderr, flush=True)
    run = Run.of(config)
    with reaching(config.run_url):  # an unreachable bucket is reported before any work
        before = remembered.remembered(config)
    if before is not None and (changed := remembered.differences(before, config.model_dump(mode="json"))):
        print(f"settings that differ from this run's last curation: {'; '.join(changed)}", file=sys.stderr, flush=True)
    remembered.remember(config)
    _sweep(run)
    for stage in run.stages():
        if not run.store(stage.name).exists(run.parts()[0]):
            stage.probe()
    order = run.order()
    reviews = Reviews(config.run_url)
    if again is not None and again not in order:
        raise UserError(f"stage {again!r} does not exist; {suggest(again, order)}")
    forced = set(order[order.index(again) :]) if again else set()
    digests: dict[tuple[str, str], str] = {}
    summaries: dict[str, list[PartSummary]] = {}

    def step(stage: str, made_from: Mapping[str, str], shared: str) -> None:
        jobs = [PartJob(run, stage, p, m, shared, stage in forced, retry_errors) for p, m in made_from.items()]
        with StageProgress(stage, len(jobs)) as progress:
            summaries[stage] = engine(jobs, progress)
        digests.update({(stage, s.part): s.digest for s in summaries[stage]})

    step("references", dict.fromkeys(run.pool_parts(), dict(run.fingerprints)["references"]), "")
    cutouts.check_pool(pool_rows(run))
    pool = pool_digest(run)
    step("plan", dict.fromkeys(run.parts(), pool), pool)
    scored = [s.name for s in run.stages()]
    ids = {p: need_part(run, "plan", p).table.column("sample_id").to_pylist() for p in run.parts()}

    def made_from(stage: str, reads: Sequence[str], part: str) -> str:
        read = [pool if name == "references" else digests[name, part] for name in reads]
        return join_digests([*read, *reviews.digest(stage, ids[part])])

    for stage in run.stages():
        step(stage.name, {p: made_from(stage.name, stage.reads, p) for p in run.parts()}, pool)
        _stop_if_all_failed(run, stage.name, summaries[stage.name])
    step("decide", {p: made_from("decide", scored, p) for p in run.parts()}, pool)
    everything = join_digests(digests.values())
    step("shards", publish.shard_inputs(run, digests, pool), everything)
    dataset_url = publish.publish(run)
    return CurationResult(run, summaries, pool, dataset_url, f"{dataset_url}/manifest.parquet")


def _sweep(run: Run) -> None:
    """Remove temporary files that killed processes left in the run's folders, if they are on this machine."""
    stores = [run.store(stage) for stage in run.order()]
    if isinstance(stores[0].fs, LocalFileSystem):
        for folder in (run.config.run_url, f"{run.config.run_url}/datasets", *(store.root for store in stores)):
            files.sweep(folder)


def _stop_if_all_failed(run: Run, stage: str, summaries: Sequence[PartSummary]) -> None:
    """Raise UserError if a stage failed on every sample, because later stages would have nothing to do."""
    counts = sum((Counter(s.counts) for s in summaries), Counter[str]())
    if not counts["error"] or counts["ok"]:
        return
    rows = [row for part in run.parts() for row in need_part(run, stage, part).rows() if row["status"] == "error"]
    code = Counter(row["error_code"] for row in rows).most_common(1)[0][0]
    example = next(row["error_message"] for row in rows if row["error_code"] == code)
    raise UserError(
        f"stage {stage}: all {counts['error']} samples failed, most with {code} ({example}); mend that, then run the "
        "same command with --retry-errors"
    )
