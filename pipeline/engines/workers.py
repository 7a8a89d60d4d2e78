"""Where parts are made: in threads of this process, in processes of this machine, or on a Ray cluster.

All make the same bytes. Threads are for stages that mostly wait, or whose libraries let several threads compute.
Processes use all cores for Python too, have a device each, and survive what kills one of them.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from glob import glob
from typing import Protocol

from data_schemas.errors import UserError
from pipeline.config import CurationConfig
from pipeline.core.progress import StageProgress
from pipeline.engines.process import Died, WorkerProcess
from pipeline.jobs import PartJob
from pipeline.making import PartSummary, make_part

DEATHS = 2
"""How often a process may die over a part while no sample is at work, as when a model is loaded. Then the run stops."""


class Workers(Protocol):
    """Makes parts, ``count`` of them at the same time."""

    count: int

    def make(self, job: PartJob) -> PartSummary:
        """Make a part, or wait for a free place first. Raises what ``make_part`` raises."""

    def close(self) -> None:
        """End what was started."""


class Threads:
    """Makes parts in the threads that call it."""

    def __init__(self, count: int):
        self.count = count

    def make(self, job: PartJob) -> PartSummary:
        return make_part(job)

    def close(self) -> None:
        pass


class Processes:
    """Makes parts in processes of this machine: one for each GPU, or without GPUs one for each worker.

    A GPU's process has as many threads as there are workers for each GPU, and one copy of the model. Without GPUs the
    cores are divided among the processes.
    """

    def __init__(self, count: int, devices: Sequence[str]):
        self.count = count
        threads = -(-count // len(devices)) if devices else 1
        cores = str(max(1, (os.cpu_count() or 1) // count))
        environments = [{"CUDA_VISIBLE_DEVICES": device} for device in devices[:count]] or [
            {name: os.environ.get(name, cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        ] * count
        self.processes = [WorkerProcess(environment, threads) for environment in environments]
        self._places: queue.Queue[WorkerProcess] = queue.Queue()
        for place in range(threads * len(self.processes)):  # neighbours in the queue are on different devices
            self._places.put(self.processes[place % len(self.processes)])

    def make(self, job: PartJob) -> PartSummary:
        return protected(self._make, job)

    def _make(self, job: PartJob) -> PartSummary:
        place = self._places.get()
        try:
            if not job.doubted:
                return place.make(job)
            # Whatever kills this one again must not take a neighbour with it, or be taken for one.
            apart = WorkerProcess(place.environment, 1)
            try:
                return apart.make(job)
            finally:
                apart.close()
        finally:
            self._places.put(place)

    def close(self) -> None:
        for process in self.processes:
            process.close()


def protected(make: Callable[[PartJob], PartSummary], job: PartJob) -> PartSummary:
    """A part whose samples may kill or hang the process that makes it.

    After a death the part is made again in a process of its own, and there the samples that were at work one by one.
    One over which the process dies again becomes an error row. UserError if it dies without a sample at work.
    """
    deaths = 0
    while True:
        try:
            return make(job)
        except Died as died:
            if not died.guilty:
                continue
            alone = len(died.at_work) == 1 and died.at_work[0] in job.doubted
            if alone or (died.code == "timed_out" and len(died.at_work) == 1):
                job = replace(job, given_up=(*job.given_up, (died.at_work[0], died.code, died.reason)))
            elif died.at_work:
                job = replace(job, doubted=(*job.doubted, *died.at_work))
            else:
                deaths += 1
                if deaths == DEATHS:
                    raise UserError(
                        f"stage {job.stage}: {died.reason}, twice, before the first sample of {job.part}; is there "
                        "enough memory for its model?"
                    ) from died


def workers_of(config: CurationConfig) -> Workers:
    """The workers that a config asks for."""
    if config.engine == "threads":
        return Threads(config.workers)
    if config.engine == "local":
        return Processes(config.workers, visible_gpus() if config.devices is None else config.devices)
    from pipeline.engines.ray_cluster import Cluster

    return Cluster(config)


def visible_gpus() -> list[str]:
    """The GPUs that processes can have each for itself, as CUDA_VISIBLE_DEVICES names them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    if not glob("/dev/nvidia[0-9]*"):  # torch is slow to import
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


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
