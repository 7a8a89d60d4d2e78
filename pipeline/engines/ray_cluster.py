"""Parts made on a Ray cluster: for each stage a pool of actors, each of which has a worker process of its own.

The cluster's machines need this project installed, and the run's folder (and local pools and weights) at the same path,
as on a network disk, or in a bucket. A user's own stages are sent along.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import re
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, WorkerCrashedError

from data_schemas.commands import say
from data_schemas.errors import UserError
from pipeline.backends import own_stages
from pipeline.config import CurationConfig, Resources
from pipeline.engines.local import Processes
from pipeline.engines.serve import portable
from pipeline.jobs import PartJob
from pipeline.making import PartSummary, kept

LOST = 20
"""How often the actor of a part may be lost, with its machine or without, before the run stops."""
AGAIN = 1.0
"""Seconds before an actor that was lost is asked again whether it runs."""
PATIENCE = 60.0
"""Seconds without a free place after which that is said."""


class Cluster:
    """Makes parts in the actors of the stage that is at work. Those of a stage are ended when the next one begins, so
    that no model stays on a GPU that another stage needs. Nothing is started before a part has to be made."""

    def __init__(self, config: CurationConfig):
        self.count = max(config.workers, *(r.actors or 0 for r in config.resources.values()), 1)
        self.config, self.stage, self.lock = config, "", threading.Lock()
        self.places: queue.Queue[Any] = queue.Queue()
        self.actors: list[Any] = []
        self.asking = threading.Lock()
        self.started = False
        # Ray's processes end with the thread that started them, and those that make parts end with each stage
        self.starter = ThreadPoolExecutor(1)

    def _start(self) -> None:
        """Connect to the cluster, or start one, unless this process is connected already."""
        if ray.is_initialized():
            return
        address = self.config.ray_address
        folders = sorted({_folder(use) for use in own_stages(self.config)})
        shipped = {"py_modules": folders} if folders else {}  # Ray starts no actor with an empty list
        try:
            if found := re.fullmatch(r"([^/]+):(\d+)", address or ""):
                socket.create_connection((found[1], int(found[2])), timeout=5).close()  # Ray tries for minutes
            here: dict[str, Any] = {} if address else {"_node_ip_address": "127.0.0.1"}
            place = address or "local"  # without one, Ray would join any cluster that was begun here, even a dead one
            ray.init(place, runtime_env=shipped, include_dashboard=False, logging_level=logging.ERROR, **here)
            self.started = True
        except (OSError, RayError, RuntimeError, ValueError) as error:
            where = address or "a cluster of this machine"
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"engine ray: {where} cannot be had ({reason}); check ray_address, or leave it out"
            ) from error

    def make(self, job: PartJob) -> PartSummary:
        """Have an actor make the part, unless it is there. If the actor is lost, another makes it, and Ray starts a new
        one where it can."""
        if (there := kept(job)) is not None:
            return there
        with self.lock:
            self._staff(job)
        for _ in range(LOST):
            actor = self._free()
            if isinstance(actor, BaseException):
                self.places.put(actor)  # the other threads wait too
                reason = str(actor).strip().splitlines()[-1][:200]
                raise UserError(
                    f"engine ray: an actor cannot be started ({reason}); install this project on every machine of the "
                    "cluster as it is here"
                ) from actor
            try:
                kind, value = ray.get(actor.make.remote(job))
            except (RayActorError, WorkerCrashedError):
                self._offer(actor)
                continue
            self.places.put(actor)
            if kind == "failed":
                raise value
            return value
        raise UserError(f"stage {job.stage}: the machine of {job.part} was lost {LOST} times; look at the cluster")

    def _free(self) -> Any:
        while True:
            try:
                return self.places.get(timeout=PATIENCE)
            except queue.Empty:
                say(f"stage {self.stage}: still waiting for a place on the Ray cluster; see `ray status`")

    def _offer(self, actor: Any) -> None:
        """Make an actor a free place as soon as it runs: the cluster may have no room for it now, or never.

        If it cannot be started, the error takes the place.
        """

        def answered(answer: Future[None]) -> None:
            error = answer.exception()
            if isinstance(error, RayActorError) and not error.actor_init_failed:  # being started anew
                threading.Timer(AGAIN, self._offer, [actor]).start()
            else:
                places.put(error or actor)

        with self.asking:
            if not any(actor is own for own in self.actors):  # Ray would connect anew to ask an actor that was ended
                return
            places, answer = self.places, actor.runs.remote().future()
        answer.add_done_callback(answered)

    def _staff(self, job: PartJob) -> None:
        """Actors for the job's stage, if those there are another's. All parts of a stage are made before the next's."""
        if job.stage == self.stage:
            return
        self.starter.submit(self._start).result()
        self._dismiss()
        wanted = self.config.resources.get(job.stage) or self.config.resources.get("default") or Resources()
        options = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "max_restarts": -1}
        if wanted.memory_gb is not None:
            options["memory"] = int(wanted.memory_gb * 1e9)
        make: Any = Maker
        self.actors = [make.options(**options).remote() for _ in range(wanted.actors or self.config.workers)]
        for actor in self.actors:
            self._offer(actor)
        self.stage = job.stage

    def _dismiss(self) -> None:
        with self.asking:
            ended, self.actors, self.places = self.actors, [], queue.Queue()
        for actor in ended:
            ray.kill(actor)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._dismiss()
        if self.started:
            ray.shutdown()
        self.starter.shutdown()


@ray.remote
class Maker:
    """Makes parts in a process of its own on the actor's machine, with the actor's GPUs."""

    def __init__(self) -> None:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if ray.get_gpu_ids() else ""
        self.processes = Processes(1, [gpus] if gpus else [])

    def runs(self) -> None:
        """Answers when the actor has been started."""

    def make(self, job: PartJob) -> tuple[str, Any]:
        """("done", PartSummary) or ("failed", exception): Ray would wrap the exception in one of its own."""
        try:
            return "done", self.processes.make(job)
        except Exception as error:
            return "failed", portable(error)


def _folder(use: str) -> str:
    """What has to be sent along for ``module:Class``: its package's folder, or its file."""
    found = importlib.util.find_spec(use.partition(":")[0].partition(".")[0])
    assert found is not None, "the stage was made before"
    if found.submodule_search_locations:
        return next(iter(found.submodule_search_locations))
    return str(found.origin)
