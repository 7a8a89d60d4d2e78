"""Running the curation under Prefect: a task for each range of parts, cached by the parts' fingerprint and inputs.

The cache key contains nothing of the flow run, and results are stored beside the run's parts, so nothing is lost with
Prefect's database. A part that is missing or damaged on disk is made again, even if Prefect has a cached result for it.
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import wraps
from itertools import takewhile
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from fsspec.core import split_protocol
from prefect import Flow, Task, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.futures import PrefectFuture, as_completed
from prefect.logging.handlers import APILogHandler
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from data_schemas.errors import UserError
from pipeline.core.parts import join_digests
from pipeline.core.progress import PARTS, StageProgress
from pipeline.curate import Engine
from pipeline.engines.workers import Workers, made_in, make_parts
from pipeline.jobs import PartJob
from pipeline.making import PartSummary, kept

RANGE = 512
"""Samples in a task, about: what a task costs, a few hundred milliseconds, is then below one millisecond a sample."""
SHOWN_EVERY = 2.0
"""Seconds between two updates of the progress that Prefect's UI shows."""

P = ParamSpec("P")
R = TypeVar("R")


def under_prefect() -> bool:
    """Whether this code runs inside a Prefect flow run. Without one, the flows' plain functions do the same work."""
    return FlowRunContext.get() is not None


def callable_of(step: Flow[P, R] | Task[P, R]) -> Callable[P, R]:
    """The flow or task as this run calls it: through Prefect inside a flow run, otherwise its plain function."""
    return cast(Callable[P, R], step if under_prefect() else step.fn)


def engine_of_run() -> Engine:
    """The engine that makes a stage's parts in this run."""
    return prefect_engine if under_prefect() else make_parts


def reports_mistakes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of flow functions: a user's mistake ends the flow as failed, with one line and no traceback.

    The caller of the flow still gets the UserError. Messages name command options with dashes (``--samples``); a flow
    has parameters instead, so the dashes are removed.
    """

    @wraps(function)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            if not under_prefect():
                raise
            error.args = (re.sub(r"--(?=[a-z])", "", str(error)),)
            return cast(R, Failed(message=str(error), data=error))

    reporting.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return reporting  # with the resolved signature, as Prefect would look up type names in this module


def cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Prefect's cache key of a range of parts; ``_key`` makes it."""
    return parameters["key"]


def _is_transient(state: Any) -> bool:
    """Whether a failed task is worth a retry: only errors of disks and networks are, a user's mistake is not."""
    try:
        state.result()
    except OSError:
        return True
    except Exception:
        return False
    return False


def prefect_engine(jobs: Sequence[PartJob], progress: StageProgress, workers: Workers) -> list[PartSummary]:
    """Make the parts of one stage as Prefect tasks, each of which is a range of parts; all share the workers.

    Summaries are in the order of the jobs.
    """
    if not jobs:
        return []
    _log_to_prefect()
    config, stage = jobs[0].run.config, jobs[0].stage
    ranges = {own[0].part: own for own in _ranges(jobs)}
    bar = _Bar(stage, len(jobs), progress)
    stopped = threading.Event()

    @task(
        name=f"make-{stage}",
        task_run_name="{stage} {first} to {last}",
        cache_key_fn=cache_key,
        persist_result=True,
        result_serializer="json",
        retries=1,
        retry_delay_seconds=2,
        retry_condition_fn=lambda task, run, state: _is_transient(state),
    )
    def make_range(stage: str, first: str, last: str, key: str) -> Any:
        """Make the parts from ``first`` to ``last`` unless they are complete. Returns their summaries as values."""
        if stopped.is_set():
            return Cancelled(message="not begun, because another part failed")
        return [asdict(summary) for summary in made_in(places, ranges[first], workers, bar.made)]

    summaries: dict[str, list[PartSummary]] = {}
    there: dict[str, list[PartSummary]] = {}
    places = ThreadPoolExecutor(workers.count)
    try:
        with ThreadPoolTaskRunner(max_workers=2) as runner:  # type: ignore[var-annotated]  # one fills the other's gaps
            futures: dict[PrefectFuture, str] = {}
            for first, own in ranges.items():
                there[first] = list(filter(None, takewhile(bool, map(kept, own))))  # up to one that has to be made
                options: dict[str, Any] = {"refresh_cache": len(there[first]) < len(own)}
                if split_protocol(config.run_url)[0] is None:  # on a bucket: Prefect's own result storage
                    options["result_storage"] = Path(config.run_url).absolute() / "prefect"
                parameters = {"stage": stage, "first": first, "last": own[-1].part, "key": _key(own)}
                futures[runner.submit(make_range.with_options(**options), parameters)] = first
            try:
                for future in as_completed(list(futures)):
                    made = [PartSummary(**summary) for summary in future.result()]
                    if future.state.name == "Cached":
                        # Prefect's results are of the time when it made the parts; a shell may have made them since.
                        made = there[futures[future]]
                        for summary in made:
                            bar.made(summary)
                    summaries[futures[future]] = made
            except BaseException:
                stopped.set()
                places.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        places.shutdown(cancel_futures=True)
        bar.show()
    return [summary for first in ranges for summary in summaries[first]]


class _RunLog(APILogHandler):
    """Sends log records to Prefect's log of the flow run in which they come up."""

    def emit(self, record: logging.LogRecord) -> None:
        if under_prefect() or TaskRunContext.get() is not None:
            super().emit(record)


def _log_to_prefect() -> None:
    """Have the line of each part written to Prefect's log, and not to the console too, where the progress is shown."""
    if not any(isinstance(handler, _RunLog) for handler in PARTS.handlers):
        PARTS.addHandler(_RunLog())
        PARTS.setLevel(logging.INFO)
        PARTS.propagate = False


def _ranges(jobs: Sequence[PartJob]) -> list[list[PartJob]]:
    """The jobs in order, divided into ranges of about RANGE samples; a part of the pool or a shard counts as 64."""
    bounds, ranges, held = jobs[0].run.bounds(), list[list[PartJob]](), RANGE
    for job in jobs:
        begin, end = bounds.get(job.part, (0, 64))
        if held >= RANGE:
            ranges.append([])
            held = 0
        ranges[-1].append(job)
        held += end - begin
    return ranges


def _key(jobs: Sequence[PartJob]) -> str:
    """Stage, its fingerprint, the first part, and a digest of the names and inputs of all parts."""
    first = jobs[0]
    inputs = join_digests(text for job in jobs for text in (job.part, job.made_from))
    return f"{first.stage}-{dict(first.run.fingerprints)[first.stage]}-{first.part}-{inputs[:16]}"


class _Bar:
    """The progress of a stage, in the terminal and as an artifact of the flow run.

    Parts are made also while Prefect's server is away. After a first try that failed, which may take a minute, the
    stage's progress is no longer shown there.
    """

    def __init__(self, stage: str, total: int, progress: StageProgress):
        self.total, self.progress, self.shown = total, progress, time.monotonic()
        self.done: set[str] = set()
        self.lock = threading.Lock()
        self.artifact: Any = None
        with suppress(Exception):
            self.artifact = create_progress_artifact(0.0, key=f"{stage}-progress", description=f"stage {stage}")

    def made(self, summary: PartSummary) -> None:
        """Count a part, once, also where its range is retried. The artifact is updated every few seconds, as each time
        asks the server."""
        with self.lock:
            if summary.part in self.done:
                return
            self.progress.advance(summary)
            self.done.add(summary.part)
            if time.monotonic() - self.shown < SHOWN_EVERY:
                return
            self.shown = time.monotonic()
        self.show()

    def show(self) -> None:
        if self.artifact is None:
            return
        try:
            update_progress_artifact(self.artifact, 100.0 * len(self.done) / self.total)
        except Exception:
            self.artifact = None
