"""Where parts are made, and giving the parts of a stage to it. Whatever makes them, they have the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

from data_schemas.errors import UserError
from pipeline.config import CurationConfig
from pipeline.core.progress import StageProgress
from pipeline.engines.local import Processes, Threads, visible_gpus
from pipeline.jobs import PartJob
from pipeline.making import PartSummary


class Workers(Protocol):
    """Makes parts, ``count`` of them at the same time."""

    count: int

    def make(self, job: PartJob) -> PartSummary:
        """Make a part, or wait for a free place first. Raises what ``make_part`` raises."""

    def close(self) -> None:
        """End what was started."""


class WhileHeld:
    """Workers that begin no further part once ``check`` raises, because the lock of the run was lost."""

    def __init__(self, workers: Workers, check: Callable[[], None]):
        self.count, self._workers, self._check = workers.count, workers, check

    def make(self, job: PartJob) -> PartSummary:
        self._check()
        return self._workers.make(job)

    def close(self) -> None:
        self._workers.close()


def workers_of(config: CurationConfig) -> Workers:
    """The workers that a config asks for."""
    if config.engine == "threads":
        return Threads(config.workers)
    if config.engine == "local":
        return Processes(config.workers, visible_gpus() if config.devices is None else config.devices)
    try:
        from pipeline.engines.ray_cluster import Cluster
    except ModuleNotFoundError as error:
        raise UserError(f"engine ray: {error.name} is not installed; pip install 'instructar[ray]'") from error
    return Cluster(config)


def make_parts(jobs: Sequence[PartJob], progress: StageProgress, workers: Workers) -> list[PartSummary]:
    """Make the parts of one stage. Summaries are in the order of the jobs.

    After an error or an interrupt no further part is begun; parts at work are finished and kept.
    """
    pool = ThreadPoolExecutor(workers.count)
    try:
        return made_in(pool, jobs, workers, progress.advance)
    except KeyboardInterrupt:
        try:
            progress.line(f"stopping after the parts at work ({progress.done} of {len(jobs)} done); Ctrl-C leaves now")
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:  # safe, because an unfinished part does not exist on disk
            workers.close()
            os._exit(130)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def made_in(
    pool: ThreadPoolExecutor, jobs: Sequence[PartJob], workers: Workers, made: Callable[[PartSummary], object]
) -> list[PartSummary]:
    """Have the threads of ``pool`` wait for parts; ``made`` gets each summary. After an error, those of these parts
    that are not begun are not made."""
    futures = [pool.submit(workers.make, job) for job in jobs]
    try:
        for future in as_completed(futures):
            made(future.result())
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return [future.result() for future in futures]
