"""The time that the cache of parts saves: the same curation run twice. The last line is one JSON object.

python benchmarks/curation_cache.py --samples 24
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

from pipeline.config import CurationConfig
from pipeline.curate import curate


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=24)
    samples = arguments.parse_args().samples
    with tempfile.TemporaryDirectory() as root:
        config = CurationConfig(name="benchmark", root=root, samples=samples, part_size=8)
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            curate(config)
            seconds.append(time.perf_counter() - began)
    made, found = seconds
    sides = {"made_s": round(made, 3), "found_s": round(found, 3), "ratio": round(made / found, 1)}
    print(json.dumps({"benchmark": "curation_cache", "samples": samples, **sides}))


if __name__ == "__main__":
    main()
