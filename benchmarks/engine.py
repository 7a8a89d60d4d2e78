"""What the curation costs besides its stages: stub stages that do nothing, at growing numbers of samples.

python benchmarks/engine.py                     # 100,000 samples: some minutes
python benchmarks/engine.py --samples 10000

Each measurement is a process of its own. The last line is one JSON object:

ms_per_sample           orchestration of a fresh run, milliseconds a sample, all stages together
cached_s                the same command again, everything from the cache, seconds
threshold_s             deciding anew under another threshold, seconds
memory_ratio            peak memory at ``samples`` over that at a tenth of them
prefect_ms_per_sample   what Prefect adds to a fresh run of a tenth of the samples, milliseconds a sample
workers_ratio           speed of two local worker processes over one, on a stage that computes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]


def settings(root: str, samples: int, **changes: Any) -> dict[str, Any]:
    from troubled.stages import STUBS

    return {
        "name": "engine", "root": root, "samples": samples, **STUBS,
        "synthesis": {"use": "troubled.stages:Nothing"}, "matting": {"use": "troubled.stages:NothingCut"},
        "filters": [{"use": "troubled.stages:Trouble", "config": {}}],
        "decide": {"thresholds": {"troubled": 1e9}}, **changes,  # nothing is kept, so that there is no shard to write
    }  # fmt: skip


def curation(given: dict[str, Any], prefect: bool = False) -> dict[str, float]:
    """This process: curate, and tell the seconds of all and of each stage, and the peak memory in megabytes."""
    import resource

    from pipeline.config import CurationConfig
    from pipeline.curate import curate

    config, taken = CurationConfig.parse(given, "benchmark"), {}
    if prefect:
        from prefect import flow
        from prefect.testing.utilities import prefect_test_harness

        from flows.engine import prefect_engine

        with prefect_test_harness():
            begun = time.perf_counter()
            flow(lambda: curate(config, prefect_engine) and None, name="benchmark")()
            taken["s"] = time.perf_counter() - begun
    else:
        begun = time.perf_counter()
        curate(config)
        taken["s"] = time.perf_counter() - begun
    return {**taken, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measured(given: dict[str, Any], prefect: bool = False) -> dict[str, float]:
    """``curation`` in another process."""
    command = [sys.executable, __file__, "--one", json.dumps([given, prefect])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--samples", type=int, default=100_000)
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(curation(*json.loads(given.one))))
        return
    many, few = given.samples, given.samples // 10
    with tempfile.TemporaryDirectory() as root:
        large, small = f"{root}/large", f"{root}/small"
        fresh, fresh_small = measured(settings(large, many)), measured(settings(small, few))
        cached = measured(settings(large, many))
        threshold = measured(settings(large, many, decide={"thresholds": {"troubled": 2e9}}))
        under_prefect = measured(settings(f"{root}/prefect", few), prefect=True)
        worked = max(8, min(240, many // 100))
        work = {"use": "troubled.stages:Trouble", "config": {"work": 0.2}}
        sides = [
            [settings(f"{root}/{n}", samples, engine="local", devices=[], workers=n, part_size=4, filters=[work])
             for samples in (4, worked)] for n in (1, 2)
        ]  # fmt: skip
        one, two = ([measured(given) for given in side][-1] for side in sides)  # the pool is made before
    line = {
        "ms_per_sample": 1000 * fresh["s"] / many, "cached_s": cached["s"], "threshold_s": threshold["s"] - cached["s"],
        "memory_ratio": fresh["megabytes"] / fresh_small["megabytes"],
        "prefect_ms_per_sample": 1000 * (under_prefect["s"] - fresh_small["s"]) / few,
        "workers_ratio": one["s"] / two["s"],
    }  # fmt: skip
    print(json.dumps({
        "benchmark": "engine", "samples": many, **{name: round(value, 3) for name, value in line.items()},
        "megabytes": [round(fresh_small["megabytes"]), round(fresh["megabytes"])], "fresh_s": round(fresh["s"], 1),
        "ratio": round(line["workers_ratio"], 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
