"""Parts made on this machine: in threads of this process, or in processes of their own.

Threads are for stages that mostly wait, or whose libraries let several threads compute. Processes use all cores for
Python too, have a device each, and survive what kills one of them.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from dataclasses import replace
from glob import glob

from data_schemas.errors import UserError
from pipeline.engines.process import Died, WorkerProcess
from pipeline.jobs import PartJob
from pipeline.making import PartSummary, kept, make_part

DEATHS = 2
"""How often a process may die over a part while no sample is at work, as when a model is loaded. Then the run stops."""
ALONE = 2
"""How often it may die over a sample that works alone. Once may be another's doing, as when memory is short."""


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
        return kept(job) or protected(self._make, job)  # what is there needs no process

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
    One over which the process dies twice again becomes an error row. UserError if it dies without a sample at work.
    """
    deaths = 0
    while True:
        try:
            return make(job)
        except Died as died:
            if not died.guilty:
                continue
            alone = len(died.at_work) == 1 and job.doubted.count(died.at_work[0]) >= ALONE
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


def visible_gpus() -> list[str]:
    """The GPUs that processes can have each for itself, as CUDA_VISIBLE_DEVICES names them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    if not glob("/dev/nvidia[0-9]*"):  # torch is slow to import
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
