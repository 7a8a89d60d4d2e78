"""Runs that are killed at random moments: the whole group of processes, the command, a worker, a Ray actor or node."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from chaos.curations import FAULTS, ONCE, WHOLE, Curation, Undisturbed, undisturbed

KINDS = {"local": ("group", "command", "worker"), "ray": ("group", "command", "worker", "actor", "node")}
"""What is killed, by engine: all processes of the run (SIGKILL to the group), its command alone, one worker process,
and on Ray an actor (its worker's parent) or a node with all that runs there."""
ON_RAY = {"worker": "pipeline.engines.serve", "actor": "ray::Maker"}
"""How these processes of a cluster are told from others, by their command."""


class Cluster:
    """A Ray cluster of two nodes, of which the second can be lost and found again."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        self._nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.address, self.second = self._nodes.address, None

    def complete(self) -> None:
        """Have two nodes."""
        if self.second is None:
            self.second = self._nodes.add_node(num_cpus=1)

    def lose(self) -> None:
        """Kill the processes of the second node."""
        self._nodes.remove_node(self.second, allow_graceful=False)
        self.second = None

    def close(self) -> None:
        self._nodes.shutdown()


@contextmanager
def cluster_for(engine: str) -> Iterator[Cluster | None]:
    """A cluster if the engine needs one."""
    cluster = Cluster() if engine == "ray" else None
    try:
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()


def killed_rounds(
    engine: str,
    kills: int,
    chance: random.Random,
    folder: Path,
    calm: Undisturbed,
    faults: Mapping[str, Any] = FAULTS | ONCE,
    **changes: Any,
) -> dict[str, Any]:
    """Start runs and kill them, ``kills`` times in all; each run is started again until it is whole.

    Raises AssertionError if a run ends otherwise than the undisturbed one, or makes a part anew that was whole.
    """
    killed, rounds, runs = Counter(dict.fromkeys(KINDS[engine], 0)), 0, 0
    with cluster_for(engine) as cluster:
        usual = calm.seconds
        if cluster is not None:
            cluster.complete()
            changes = {**changes, "ray_address": cluster.address}
            usual = undisturbed(folder / "ray-calm", "ray", FAULTS, **changes).seconds
        while killed.total() < kills:
            rounds += 1
            curation = Curation(folder / f"{engine}-{rounds}", engine, faults, **changes)
            whole, before = False, dict[str, str]()
            while not whole:
                runs += 1
                if cluster is not None:
                    cluster.complete()
                process = curation.start()
                while killed.total() < kills and process.poll() is None:
                    try:
                        process.wait(chance.uniform(0.2, 1.2) * usual)
                    except subprocess.TimeoutExpired:
                        killed[_kill(process, cluster, chance)] += 1
                        before = curation.parts() | before  # as first seen
                whole = process.wait(WHOLE) == 0
            assert (found := curation.contents()) == calm.contents, (
                f"{curation.root} differs: {found} for {calm.contents}"
            )
            again = [path for path, time in curation.parts().items() if before.get(path, time) != time]
            assert not again, f"made again, though they were whole: {again}"
            shutil.rmtree(curation.folder)
    return {"killed": dict(killed), "kills": killed.total(), "runs": runs, "rounds": rounds}


def _kill(process: subprocess.Popen[bytes], cluster: Cluster | None, chance: random.Random) -> str:
    """Kill the run, or some of it that is there. Returns what was killed."""
    own = psutil.Process(process.pid).children()
    some = {"worker": own} if cluster is None else {kind: _on_ray(sign) for kind, sign in ON_RAY.items()}
    kinds = ["group", "command", *(kind for kind in some if some[kind])]
    what = chance.choice([*kinds, "node"] if cluster is not None and cluster.second else kinds)
    if what == "node" and cluster is not None:
        cluster.lose()
    elif what in some:
        chance.choice(some[what]).kill()
    else:
        if what == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # its workers see that it is gone
        process.wait()
        for left in own:
            left.wait(20)
    return what


def _on_ray(sign: str) -> list[psutil.Process]:
    """The processes of this process's cluster that show ``sign`` in their command."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(word.startswith(sign) for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
