"""Processor milliseconds a sample that the plan takes in one process, and its memory, at growing numbers of samples.

python benchmarks/costs/planning.py --samples 1000 10000 100000 200000

The pool has the shape of the paper's: 303 objects of 44 categories and 17,706 portraits (``--subjects`` for another
number in all). Only its rows are made, no picture is read. Each number is measured in a process of its own. The last
line is one JSON object; "ratio" is the time a sample at the largest number over that at the smallest.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import islice

import pyarrow as pa

from data_schemas.tables import PLAN
from pipeline.config import CurationConfig
from pipeline.planning.planning import planned

OBJECTS, CATEGORIES = 303, 44
AT_ONCE = 1024


def pool(subjects: int) -> list[dict]:
    rows = []
    for number in range(subjects):
        category = f"object {number % CATEGORIES}" if number < OBJECTS else "person"
        rows.append({
            "reference_id": f"{number:016x}", "subject_id": f"subject-{number}", "name": f"thing {number}",
            "category": category, "source": f"{number}.png", "source_sha256": f"{number:064x}", "box": None,
            "width": 512, "height": 512, "area_share": 0.5, "pixels_sha256": f"{number:064x}", "mirror": True,
            "status": "ok", "error_code": None, "error_message": None,
        })  # fmt: skip
    return rows


def measured(samples: int, subjects: int) -> dict[str, float]:
    """This process: plan, as the stage does, into one table."""
    config, references = CurationConfig.load("paper"), pool(subjects)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    rows = planned(references, config.planning, samples, config.seed)
    table = pa.concat_tables([PLAN.table(some) for some in iter(lambda: list(islice(rows, AT_ONCE)), [])])
    taken = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {
        "ms_per_sample": round(1000 * taken / samples, 3), "seconds": round(taken, 2),
        "table_bytes_per_sample": round(table.nbytes / samples), "grown_mb": round(grown / 1e6),
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--samples", type=int, nargs="+", default=[1000, 10_000, 100_000, 200_000])
    arguments.add_argument("--subjects", type=int, default=OBJECTS + 17_706)
    arguments.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(measured(given.samples[0], given.subjects)))
        return
    figures = {}
    for samples in given.samples:
        command = [sys.executable, __file__, "--one", "--samples", str(samples), "--subjects", str(given.subjects)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        figures[str(samples)] = json.loads(done.stdout.splitlines()[-1])
        print(f"{samples:>10,}  " + "  ".join(f"{key} {value:g}" for key, value in figures[str(samples)].items()))
    times = [row["ms_per_sample"] for row in figures.values()]
    line = {"benchmark": "planning", "subjects": given.subjects, "samples": figures}
    print(json.dumps({**line, "ratio": round(times[-1] / times[0], 2)}))


if __name__ == "__main__":
    main()
