"""Seconds to write shards, beside webdataset's TarWriter and beside img2dataset. The last line is one JSON object.

python benchmarks/shards.py                                # 256 samples of 512 pixels, a shard of 270 MB
python benchmarks/shards.py --img2dataset PYTHON           # one where img2dataset, s3fs and moto[server] are installed

TarWriter, on a disk. Ours reads the pictures from the stages' parts, makes the JSON, writes and hashes the tar and its
index, and syncs both to the disk. The bare writer gets the finished members in memory and writes them to a file of the
same disk, unhashed and unsynced. Both write one shard with the same bytes.

img2dataset, over S3. Both read the same pictures from one server of this machine (moto's, a process of its own), write
them as they are into shards of 64 samples, and store those in a bucket of that server. Ours runs the stage "shards" of
a run that lies in the bucket, in four threads: parts are read, and shards have the samples' JSON, checksums and index.
img2dataset gets the URL of every picture, each an object of its own; it does not resize or encode again
(resize_mode no, disable_all_reencoding), computes no hash, and is given one process with 16 threads, which was as fast
as two processes or 64 threads. Its time is what its own statistics say, from the begin of its first shard to the end
of its last, so that starting processes and importing count for neither side.

"ratio" is our speed over the other side's, the median of all rounds; both sides are timed in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import webdataset as wds

from data_schemas.shards import read_members
from pipeline.config import CurationConfig
from pipeline.core.progress import StageProgress
from pipeline.curate import CurationResult, curate
from pipeline.engines.local import Threads
from pipeline.engines.workers import make_parts
from pipeline.jobs import PartJob
from pipeline.making import make_part

Members = dict[str, dict[str, bytes]]
SHARD = 64
"""Samples in a shard of the comparison over S3."""
DOWNLOAD = """
import sys
from img2dataset import download
urls, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
download(
    url_list=urls, input_format="txt", output_folder=folder, output_format="webdataset", number_sample_per_shard=count,
    processes_count=1, thread_count=16, resize_mode="no", disable_all_reencoding=True, compute_hash=None,
)
"""


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def curated(root: str, samples: int, size: int, per_shard: int) -> CurationResult:
    """A run of collages of which every sample is kept; its pool is so large that few references are shown twice."""
    unjudged: dict[str, Any] = {stage: {"backend": "none"} for stage in ("semantics", "identity", "quality")}
    config = CurationConfig.parse({
        "name": "benchmark", "root": root, "samples": samples, "part_size": SHARD,
        "references": {"pool": [{"source": "generated", "count": 4 * samples}], "size": size},
        "planning": {"test_share": 0},
        "synthesis": {"backend": "collage", "size": size, "fault_share": 0}, "matting": {"backend": "pasted"},
        "shards": {"samples_per_shard": per_shard}, **unjudged,
    }, "benchmark")  # fmt: skip
    return curate(config)


def bare(path: Path, members: Members) -> None:
    with open(path, "wb") as file, wds.TarWriter(file, encoder=False) as writer:
        for sample_id, own in members.items():
            writer.write({"__key__": sample_id, **own})


def beside_bare(root: str, result: CurationResult, members: Members, rounds: int) -> dict[str, float]:
    job = PartJob(result.run, "shards", "train-00000", "benchmark", "benchmark", force=True)
    make_part(job)  # reads what all shards share, so that it is not timed
    times = [
        (seconds(lambda: make_part(job)), seconds(lambda: bare(Path(root, "bare.tar"), members))) for _ in range(rounds)
    ]
    return compared(times, 1, "s", "bare")


def compared(times: list[tuple[float, float]], amount: int, unit: str, other: str) -> dict[str, float]:
    """The medians of both sides, in seconds or in pictures a second, and that of our speed over the other's."""
    ours, theirs = (statistics.median(side) for side in zip(*times, strict=True))
    if unit != "s":
        ours, theirs = amount / ours, amount / theirs
    ratio = statistics.median(theirs / ours for ours, theirs in times)
    return {f"ours_{unit}": round(ours, 4), f"{other}_{unit}": round(theirs, 4), "ratio": round(ratio, 2)}


@contextmanager
def serving(python: str) -> Iterator[None]:
    """moto's S3 server in a process of its own; fsspec finds it here, and in processes that are started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    try:
        until = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < until:
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def beside_img2dataset(python: str, folder: str, members: Members, size: int, rounds: int) -> dict[str, float]:
    """``folder`` holds the run whose shards have these ``members``; it is copied to the server."""
    with serving(python):
        fs = fsspec.filesystem("s3")
        fs.mkdir("benchmark")
        fs.put(f"{folder}/benchmark", "benchmark/runs/benchmark", recursive=True)
        urls = []
        for sample_id, own in members.items():
            pictures = {f"benchmark/pictures/{sample_id}.{n}": data for n, data in own.items() if n.endswith(".png")}
            fs.pipe(pictures)
            urls += [fs.sign(path, expiration=86_400) for path in pictures]
        listed = Path(folder, "urls.txt")
        listed.write_text("\n".join(urls))
        run = curated("s3://benchmark/runs", len(members), size, SHARD).run
        workers = Threads(4)
        jobs = [PartJob(run, "shards", name, "benchmark", "benchmark", force=True)
                for name in (f"train-{k:05d}" for k in range(-(-len(members) // SHARD)))]  # fmt: skip

        def ours() -> float:
            with StageProgress("shards", len(jobs)) as progress:
                return seconds(lambda: make_parts(jobs, progress, workers))

        def theirs(number: int) -> float:
            per_shard = SHARD * len(urls) // len(members)
            given = [str(listed), f"s3://benchmark/downloaded-{number}", str(per_shard)]
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # its packages are its own
            subprocess.run([python, "-c", DOWNLOAD, *given], env=environment, stdout=subprocess.DEVNULL, check=True)
            fs.invalidate_cache()
            stats = [json.loads(data) for data in fs.cat(f"{given[1]}/*_stats.json").values()]
            assert sum(shard["successes"] for shard in stats) == len(urls), stats
            return max(shard["end_time"] for shard in stats) - min(shard["start_time"] for shard in stats)

        ours()
        times = [(ours(), theirs(number)) for number in range(rounds)]
    return compared(times, len(urls), "pictures_per_s", "img2dataset")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--samples", type=int, default=256)
    arguments.add_argument("--size", type=int, default=512, help="pixels of a picture's side")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--img2dataset", metavar="PYTHON", help="the Python that has img2dataset, s3fs and moto")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as root:
        result = curated(f"{root}/disk", given.samples, given.size, 100_000)
        members = dict(read_members(f"{result.dataset_url}/train-00000.tar"))
        megabytes = sum(len(data) for own in members.values() for data in own.values()) / 1e6
        line = {
            "benchmark": "shards", "samples": len(members), "size": given.size, "megabytes": round(megabytes, 1),
            **beside_bare(root, result, members, given.rounds),
        }  # fmt: skip
        if given.img2dataset:
            line["img2dataset"] = beside_img2dataset(
                given.img2dataset, f"{root}/disk", members, given.size, given.rounds
            )
    print(json.dumps(line))


if __name__ == "__main__":
    sys.exit(main())
