"""What ``instructar explore`` takes on a large run of stub stages, asked over HTTP as a browser asks.

python benchmarks/costs/exploring.py                     # 100,000 samples: some minutes to make, seconds to ask
python benchmarks/costs/exploring.py --samples 10000
python benchmarks/costs/exploring.py --run FOLDER        # keeps the run there, and takes it up again

The server is the real command in a process of its own, with nothing read before the first question. Each figure is the
median of three servers' first answers. The last line is one JSON object:

first_page_s    the page, its files, what it asks for, and the 48 pictures of the first page of samples
filter_s        a condition on a score, sorted by another: the answer, with counts of decisions and reasons
pictures_s      the 48 pictures of that page, which lie in as many parts; a browser shows them as they come
compare_s       another threshold: decisions, changes and funnels of all samples, before and after
text_s          a condition on the prompts, which are longest
again_s         the next page of the filter
megabytes       the server's memory after all of it
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "support")]
CONNECTIONS = 6
"""A browser's, to one server."""
TIMES = 3


def make(root: str, samples: int) -> str:
    """The run, made by the engine's benchmark with pictures of 8 pixels and eight scores. Few samples are kept."""
    from engine import measured, settings

    given = settings(
        root, samples, synthesis={"use": "troubled.stages:Painted"}, matting={"use": "troubled.stages:Cut"}, decide={},
        filters=[{"use": "troubled.stages:Scored", "config": {}}], shards={"samples_per_shard": 1000},
    )  # fmt: skip
    measured(given)
    return f"{root}/{given['name']}"


def measure(run: str) -> dict[str, float]:
    """One server's answers to each question, in seconds, and its memory."""
    import psutil

    command = [sys.executable, "-m", "pipeline.cli", "explore", run, "--port", "0"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stdout is not None
            url = next(re.findall(r"http://\S+(?=/ )", line)[0] for line in server.stdout if "http://" in line)
            taken = ask(url)
            return {**taken, "megabytes": psutil.Process(server.pid).memory_info().rss / 1e6}
        finally:
            server.terminate()


def ask(url: str) -> dict[str, float]:
    """The questions of somebody who opens the page, filters, and compares thresholds."""

    def get(path: str) -> bytes:
        with urllib.request.urlopen(f"{url}{path}") as answer:
            return answer.read()

    def rows(**query: Any) -> dict[str, Any]:
        return json.loads(get(f"/api/rows?{urllib.parse.urlencode(query, doseq=True)}"))

    def pictures(found: dict[str, Any]) -> None:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(get, [f"/picture/{row['sample_id']}/target?side=256" for row in found["rows"]]))

    def first() -> None:
        for path in ("/", *(f"/files/{name}" for name in re.findall(r"/files/([\w.]+)", get("/").decode()))):
            get(path)
        get("/api/about")
        pictures(rows())

    chosen = {"where": ["score_0 > 0.25", "score_1 < 0.9"], "sort": "score_2", "descending": "true"}
    taken: dict[str, float] = {}
    timed(taken, "first_page_s", first)
    found = timed(taken, "filter_s", lambda: rows(**chosen))
    timed(taken, "pictures_s", lambda: pictures(found))
    compared = {"set": [f"score_{k}_low=0.1" for k in range(4)]}
    timed(taken, "compare_s", lambda: get(f"/api/compare?{urllib.parse.urlencode(compared, doseq=True)}"))
    timed(taken, "text_s", lambda: rows(where=["prompt contains red"]))
    timed(taken, "again_s", lambda: rows(**chosen, page=2))
    return taken


def timed(taken: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    result = work()
    taken[name] = time.perf_counter() - begun
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--samples", type=int, default=100_000)
    arguments.add_argument("--run", help="Folder for the run, to be kept")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = make(given.run or temporary, given.samples)
        load = os.getloadavg()[0]
        taken = [measure(run) for _ in range(TIMES)]
    line = {name: round(statistics.median(own[name] for own in taken), 3) for name in taken[0]}
    print(json.dumps({"benchmark": "exploring", "samples": given.samples, **line, "load": round(load, 2)}))


if __name__ == "__main__":
    main()
