"""``make chaos``: kills curations at random moments, again and again, and compares what comes out in the end.

    PYTHONPATH=tests/support python -m chaos --kills 50 --engine local ray --seed 0

A run plans samples of which some kill or block their process, one scores NaN, some kill once, and one fills the disk
once. It is started, killed (the whole group of processes, the command alone, or one of its workers) and started again
until it is whole; then the next round begins. On Ray the cluster stays, and a node of it is lost in every round. Every
round must end with the manifest and the shards of a run that was never disturbed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from paths import ROOT, SUPPORT
from troubled.stages import STUBS

PLANNED = 40
FAULTS = {"crash": [7], "hang": [23], "nan": [31]}
ONCE = {"crash_once": [11, 30], "full_once": True}
WHOLE = 300
"""Seconds in which a run that nobody kills must be whole."""


def settings(root: Path, engine: str, address: str | None, traces: Path, once: bool) -> dict[str, Any]:
    traces.mkdir()
    trouble = {**FAULTS, **(ONCE if once else {}), "folder": str(traces), "batch_size": 3, "rest": 0.05}
    return {
        "name": "chaos", "root": str(root), "samples": PLANNED, "part_size": 5, "engine": engine, "devices": [],
        "ray_address": address, "time_limit": 1.0, "shards": {"samples_per_shard": 16}, **STUBS,
        "filters": [{"use": "troubled.stages:Trouble", "config": trouble}],
    }  # fmt: skip


def started(config: dict[str, Any], file: Path) -> subprocess.Popen[bytes]:
    file.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    command = [sys.executable, "-m", "pipeline.cli", "curate", "--config", str(file)]
    log = open(file.with_suffix(".log"), "ab")
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log, cwd=file.parent)


def kill(process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kill the run, or some of it. Returns what was killed."""
    what = chance.choice(["group", "command", "worker"])
    workers = psutil.Process(process.pid).children()
    if what == "worker" and workers:
        chance.choice(workers).kill()
        return what
    if what == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()  # its workers see that it is gone
    process.wait()
    for left in workers:
        left.wait(20)
    return what


def contents(root: Path) -> dict[str, str]:
    """Digest of every shard and of the manifest of the run's dataset."""
    dataset = (root / "chaos" / "dataset").resolve()
    files = [*sorted(dataset.glob("*.tar")), dataset / "manifest.parquet"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@contextmanager
def cluster_of(engine: str) -> Iterator[Any]:
    if engine != "ray":
        yield None
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def chaos(engine: str, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Disturb rounds of runs until ``kills`` have been killed. Raises AssertionError if a round differs."""
    chance = random.Random(f"{engine}/{seed}")
    calm = folder / "calm"
    process = started(settings(calm, "local", None, folder / "calm-traces", once=False), folder / "calm.yaml")
    begun = time.monotonic()
    assert process.wait(WHOLE) == 0, (folder / "calm.log").read_text()[-2000:]
    usual, expected = time.monotonic() - begun, contents(calm)
    killed, rounds, runs = {"group": 0, "command": 0, "worker": 0, "node": 0}, 0, 0
    while sum(killed.values()) < kills:
        rounds += 1
        root = folder / f"round-{rounds}"
        with cluster_of(engine) as cluster:
            second = cluster.add_node(num_cpus=1) if cluster else None
            address = cluster.address if cluster else None
            config = settings(root, engine, address, folder / f"traces-{rounds}", once=True)
            whole = False
            while not whole:
                runs += 1
                process = started(config, folder / f"round-{rounds}.yaml")
                if sum(killed.values()) < kills:
                    try:
                        process.wait(chance.uniform(0.3, 1.2) * usual)
                    except subprocess.TimeoutExpired:
                        if second is not None and chance.random() < 0.3:
                            cluster.remove_node(second, allow_graceful=False)
                            second, what = None, "node"
                        else:
                            what = kill(process, chance)
                        killed[what] += 1
                whole = process.wait(WHOLE) == 0
        assert contents(root) == expected, f"{root} differs from the undisturbed {calm}"
        shutil.rmtree(root)
    return {"engine": engine, "killed": killed, "runs": runs, "rounds": rounds, "samples": PLANNED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each engine")
    parser.add_argument("--engine", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    results = []
    for engine in given.engine:
        with tempfile.TemporaryDirectory() as folder:
            results.append(chaos(engine, given.kills, given.seed, Path(folder)))
            print(results[-1], flush=True)
    print(json.dumps({"benchmark": "chaos", "seed": given.seed, "engines": results, "differing": 0}))


if __name__ == "__main__":
    main()
