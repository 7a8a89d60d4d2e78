"""``make chaos``: disturbs curations at random moments, again and again, and compares what comes out in the end.

    PYTHONPATH=tests/support python -m chaos --kills 50 --engine local ray --buckets 2 --restarts 5 --seed 0

A run plans samples of which some kill or block their process, one scores NaN, some kill once, and one fills the disk
once. It is disturbed and started again until it is whole; then the next round begins.

- kills.py: the run, or some of its processes, are killed; on Ray an actor or a node of the cluster is lost too.
- bucket.py: the run lies in a bucket that answers 503 to some requests, and to all of them for some seconds. Then it is
  gone until the command gives up.
- prefect_server.py: the run is a flow run whose Prefect server is killed and started again.

Every round must end with the manifest and the shards of a run that was never disturbed, and no part that was whole may
be made again. The last line is one JSON object, which counts what was done.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from chaos.bucket import refused_rounds
from chaos.curations import FAULTS, PLANNED, undisturbed
from chaos.kills import killed_rounds
from chaos.prefect_server import restarted_rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each engine")
    parser.add_argument("--buckets", type=int, default=2, help="rounds in a bucket that refuses, of each engine")
    parser.add_argument("--restarts", type=int, default=5, help="of the Prefect server")
    parser.add_argument("--engine", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    line: dict[str, Any] = {"benchmark": "chaos", "seed": given.seed, "samples": PLANNED, "differing": 0}

    def tell(what: str, done: dict[str, Any]) -> None:
        line[what] = done
        print(what, done, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calm = undisturbed(folder / "calm", "local", FAULTS)
        for engine in given.engine:
            chance = random.Random(f"{engine}/{given.seed}")
            if given.kills:
                tell(f"kills_{engine}", killed_rounds(engine, given.kills, chance, folder, calm))
            if given.buckets:
                tell(f"bucket_{engine}", refused_rounds(engine, given.buckets, chance, folder))
        if given.restarts:
            tell("prefect", restarted_rounds(given.restarts, random.Random(given.seed), folder, calm))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
