"""Seconds to write a shard, compared to webdataset's TarWriter on the same bytes. The last line is one JSON object.

python benchmarks/shards.py --samples 48 --rounds 5

Ours reads the pictures from the stages' parts, makes the JSON, and writes, hashes and syncs the tar and its index. The
bare writer gets the finished members in memory and writes them to a file on the same disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset as wds

from data_schemas.shards import read_members
from pipeline.config import CurationConfig
from pipeline.curate import curate
from pipeline.jobs import PartJob
from pipeline.making import make_part


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def bare(path: Path, members: dict[str, dict[str, bytes]]) -> None:
    with open(path, "wb") as file, wds.TarWriter(file, encoder=False) as writer:
        for sample_id, own in members.items():
            writer.write({"__key__": sample_id, **own})


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=48)
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as root:
        config = CurationConfig(
            name="benchmark",
            root=root,
            samples=given.samples,
            shards={"samples_per_shard": 10_000},
            synthesis={"backend": "collage", "shown": "pasted"},
        )
        result = curate(config)
        members = dict(read_members(f"{result.dataset_url}/train-00000.tar"))
        job = PartJob(result.run, "shards", "train-00000", "benchmark", "benchmark", force=True)
        make_part(job)  # reads what all shards share, so that it is not timed
        ours, theirs = [], []
        for _ in range(given.rounds):
            ours.append(seconds(lambda: make_part(job)))
            theirs.append(seconds(lambda: bare(Path(root, "bare.tar"), members)))
    size = sum(len(data) for own in members.values() for data in own.values())
    sides = {"ours_s": statistics.median(ours), "bare_s": statistics.median(theirs)}
    print(json.dumps({
        "benchmark": "shards", "samples": len(members), "megabytes": round(size / 1e6, 1),
        **{name: round(value, 4) for name, value in sides.items()},
        "ratio": round(sides["ours_s"] / sides["bare_s"], 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
