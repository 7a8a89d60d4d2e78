"""The curation: run every stage in order, and have an engine make the parts that do not exist yet.

An engine gives the parts of a stage to workers (pipeline/engines): the plain one here, or Prefect's (flows/engine.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from data_schemas.commands import say
from data_schemas.errors import RunFailed, UserError
from data_schemas.io import files
from data_schemas.settings import suggest
from pipeline import models, remembered
from pipeline.backends import build_stages
from pipeline.config import CurationConfig
from pipeline.core.parts import join_digests
from pipeline.core.progress import StageProgress
from pipeline.core.review import Reviews
from pipeline.dataset import publish
from pipeline.engines.workers import WhileHeld, Workers, make_parts, workers_of
from pipeline.jobs import PartJob, need_part, pool_digest, pool_rows
from pipeline.making import PartSummary, plan_inputs
from pipeline.references import cutouts, pools
from pipeline.review.log import ReviewLog
from pipeline.run import Run, list_pool
from pipeline.upkeep import lock

Engine = Callable[[Sequence[PartJob], StageProgress, Workers], list[PartSummary]]
"""Has workers make the parts of one stage; the summaries are in the order of the jobs."""


@dataclass(frozen=True)
class CurationResult:
    """The paths of a run's results, the summaries of its parts by stage, and how far its splits are apart."""

    run: Run
    summaries: dict[str, list[PartSummary]]
    pool_digest: str
    dataset_url: str
    manifest_url: str
    apart: dict[str, Any]


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
    engine: Engine = make_parts,
    again: str | None = None,
    retry_errors: bool = False,
) -> CurationResult:
    """Run every stage. Parts that are complete are not made again.

    ``again`` names a stage to make again, together with all later stages. ``retry_errors`` makes failed samples again.
    Raises UserError for mistakes that the user can correct, and if another curation is at work on the run.
    """
    check_inputs(config)
    before = remembered.remembered(config)  # an unreachable bucket is reported before any work
    for line in cutouts.skipped(config.references):
        say(line)
    run = Run.of(config)
    if before is not None and (changed := remembered.differences(before, config.model_dump(mode="json"))):
        say(f"settings that differ from this run's last curation: {'; '.join(changed)}")
    order = run.order()
    if again is not None and again not in order:
        raise UserError(f"stage {again!r} does not exist; {suggest(again, order)}")
    with lock.held(config.run_url) as ours:
        remembered.remember(config)
        ReviewLog(config.run_url).write_table()
        _sweep(run)
        for stage in run.stages():
            if not run.store(stage.name).exists(run.parts()[0]):
                stage.probe()
        forced = set(order[order.index(again) :]) if again else set()
        with closing(WhileHeld(workers_of(config), ours.check)) as workers:
            return _run_stages(run, lambda jobs, progress: engine(jobs, progress, workers), forced, retry_errors)


def _run_stages(
    run: Run,
    make: Callable[[Sequence[PartJob], StageProgress], list[PartSummary]],
    forced: set[str],
    retry_errors: bool,
) -> CurationResult:
    """Every stage in order, each after all parts of the stages before it. Stages in ``forced`` are made again."""
    reviews = Reviews(run.config.run_url)
    digests: dict[tuple[str, str], str] = {}
    summaries: dict[str, list[PartSummary]] = {}

    def step(stage: str, made_from: Mapping[str, str], shared: str) -> None:
        jobs = [PartJob(run, stage, p, m, shared, stage in forced, retry_errors) for p, m in made_from.items()]
        with StageProgress(stage, len(jobs)) as progress:
            summaries[stage] = make(jobs, progress)
        digests.update({(stage, s.part): s.digest for s in summaries[stage]})

    sources = list_pool(run.config)
    run.set_pool_parts(list(sources))
    step("references", {part: cutouts.sources_digest(own) for part, own in sources.items()}, "")
    cutouts.check_pool(pool_rows(run))
    pool = pool_digest(run)
    if "plan" in forced:  # otherwise its rows would be taken for those of an earlier plan, which stay
        run.store("plan").clear()
    step("plan", *plan_inputs(run, pool))
    scored = [s.name for s in run.stages()]
    ids = {p: need_part(run, "plan", p).table.column("sample_id").to_pylist() for p in run.parts()}

    def made_from(stage: str, reads: Sequence[str], part: str) -> str:
        # the plan names its references by their content, so it stands for them
        read = [digests[name, part] for name in reads if name != "references"]
        return join_digests([*read, *reviews.digest(stage, ids[part])])

    for stage in run.stages():
        step(stage.name, {p: made_from(stage.name, stage.reads, p) for p in run.parts()}, pool)
        _stop_if_too_many_failed(run, stage.name, summaries[stage.name])
    step("decide", {p: made_from("decide", scored, p) for p in run.parts()}, pool)
    everything, tables = join_digests(digests.values()), publish.Tables(run)
    step("shards", publish.shard_inputs(tables, digests), everything)
    dataset_url = publish.publish(tables)
    return CurationResult(run, summaries, pool, dataset_url, f"{dataset_url}/manifest.parquet", tables.apart)


def _sweep(run: Run) -> None:
    """Remove temporary files that killed processes left in the run's folders, if they are on this machine."""
    stores = [run.store(stage) for stage in run.order()]
    if isinstance(stores[0].fs, LocalFileSystem):
        for folder in (run.config.run_url, f"{run.config.run_url}/datasets", *(store.root for store in stores)):
            files.sweep(folder)


def _stop_if_too_many_failed(run: Run, stage: str, summaries: Sequence[PartSummary]) -> None:
    """Raise RunFailed if a stage failed on more samples than ``max_error_share`` allows, before later ones go on."""
    counts = sum((Counter(s.counts) for s in summaries), Counter[str]())
    tried = counts["error"] + counts["ok"]
    if not counts["error"] or (counts["error"] < tried and counts["error"] <= run.config.max_error_share * tried):
        return
    rows = [row for part in run.parts() for row in need_part(run, stage, part).rows() if row["status"] == "error"]
    code = Counter(row["error_code"] for row in rows).most_common(1)[0][0]
    example = next(row["error_message"] for row in rows if row["error_code"] == code)
    some = f"{counts['error']} of {tried}" if counts["ok"] else f"all {tried}"
    allowed = f"; max_error_share is {run.config.max_error_share:g}" if counts["ok"] else ""
    raise RunFailed(
        f"stage {stage}: {some} samples failed, most with {code} ({example}){allowed}; mend that, then run the "
        "same command with --retry-errors"
    )
