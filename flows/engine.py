"""Running the curation under Prefect: one task for each part, cached by the part's fingerprint and input.

The cache key contains nothing of the flow run, and results are stored beside the run's parts, so nothing is lost with
Prefect's database. A part that is missing or damaged on disk is made again, even if Prefect has a cached result for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from fsspec.core import split_protocol
from prefect import Flow, Task, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from data_schemas.errors import UserError
from pipeline.core.progress import StageProgress
from pipeline.curate import Engine, PartSummary, make_part, thread_engine
from pipeline.jobs import PartJob

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
    return prefect_engine if under_prefect() else thread_engine


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
    """Prefect's cache key of a part: stage, fingerprint, part name and a digest of the part's input."""
    job: PartJob = parameters["job"]
    return f"{job.stage}-{dict(job.run.fingerprints)[job.stage]}-{job.part}-{job.made_from[:16]}"


@task(
    task_run_name="{job.stage} {job.part}",
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer="json",
    retries=1,
    retry_delay_seconds=2,
    retry_condition_fn=lambda task, run, state: _is_transient(state),
)
def make_part_task(job: PartJob) -> dict:
    """Make one part unless it is already complete. Returns its summary as plain values."""
    return asdict(make_part(job))


def _is_transient(state: Any) -> bool:
    """Whether a failed task is worth a retry: only errors of disks and networks are, a user's mistake is not."""
    try:
        state.result()
    except OSError:
        return True
    except Exception:
        return False
    return False


def prefect_engine(jobs: Sequence[PartJob], progress: StageProgress) -> list[PartSummary]:
    """Make the parts of one stage as Prefect tasks, ``config.workers`` at a time.

    Summaries are in the order of the jobs.
    """
    if not jobs:
        return []
    config = jobs[0].run.config
    bar: Any = create_progress_artifact(0.0, key=f"{jobs[0].stage}-progress", description=f"stage {jobs[0].stage}")
    with ThreadPoolTaskRunner(max_workers=config.workers) as runner:  # type: ignore[var-annotated]
        futures: dict[PrefectFuture, str] = {}
        for job in jobs:
            options: dict[str, Any] = {"refresh_cache": not job.whole()}
            if split_protocol(config.run_url)[0] is None:  # on a bucket: Prefect's own result storage
                options["result_storage"] = Path(config.run_url).absolute() / "prefect"
            futures[runner.submit(make_part_task.with_options(**options), {"job": job})] = job.part
        summaries = {}
        for future in as_completed(list(futures)):
            summary = PartSummary(**future.result())
            if future.state.name == "Cached":
                summary = replace(summary, cached=True)
            summaries[futures[future]] = summary
            progress.advance(summary)
            update_progress_artifact(bar, 100.0 * len(summaries) / len(jobs))
    return [summaries[job.part] for job in jobs]
