"""Processor seconds and bytes a sample of every stage, without the paper's models. The last line is one JSON object.

python benchmarks/costs/curation.py

Seconds are those of the processor, which a busy machine changes little. Two runs, each in one thread: the profile
"embedded" as it is, and one of 512 pixels, as the paper's, of which every sample is kept. Of the latter count what the
paper's profile has too: cut-outs, the stage "quality", and bytes. Its targets are collages on photographs, so that a
PNG of a target has a photograph's size. Figures are those of a sample; of the shards, of a kept one; of the references,
of a picture. "ratio" is the share kept by "embedded".
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import CurationConfig
from pipeline.core.progress import StageProgress
from pipeline.curate import curate
from pipeline.engines.workers import Workers, make_parts
from pipeline.jobs import PartJob
from pipeline.making import PartSummary
from pipeline.report.results import metrics_of, read_manifest

LARGE: dict[str, Any] = {
    "name": "large", "samples": 32, "references": {"pool": "packaged", "size": 512}, "planning": {"test_share": 0},
    "synthesis": {"backend": "collage", "size": 512, "fault_share": 0}, "matting": {"backend": "grabcut"},
    "semantics": {"backend": "none"}, "identity": {"backend": "none"},
    "decide": {
        "thresholds": {"subject_incomplete": 0, "colours_differ": 200, "subject_extra": 1, "subject_blurred": -50}
    },
}  # fmt: skip


def measured(config: CurationConfig) -> dict[str, Any]:
    taken: dict[str, float] = {}

    def engine(jobs: Sequence[PartJob], progress: StageProgress, workers: Workers) -> list[PartSummary]:
        began = time.process_time()
        made = make_parts(jobs, progress, workers)
        taken[jobs[0].stage] = time.process_time() - began
        return made

    result = curate(config, engine)
    metrics, run = metrics_of(result, read_manifest(result)), result.run
    kept, stages = metrics["funnel"]["kept"], {}
    counted = {"references": run.pictures, "shards": kept}
    for stage in run.order():
        folder = Path(run.store(stage).root)
        size = sum(file.stat().st_size for file in folder.iterdir())
        stages[stage] = {
            "seconds": round(taken[stage] / counted.get(stage, config.samples), 5),
            "bytes": round(size / counted.get(stage, config.samples)),
        }
    return {"samples": config.samples, "kept": kept, "yield": metrics["yield"], "stages": stages}


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        embedded = measured(CurationConfig.load(given={"root": root, "workers": 1}))
        large = measured(CurationConfig.parse({"root": root, "workers": 1, **LARGE}, "benchmark"))
    line = {"benchmark": "curation", "threads": os.environ.get("OMP_NUM_THREADS"), "embedded": embedded, "large": large}
    print(json.dumps({**line, "ratio": embedded["yield"]["all"]}))


if __name__ == "__main__":
    main()
