"""Runs of stub stages: their settings, and what came of them."""

import hashlib
from pathlib import Path

import pandas as pd

from pipeline.config import CurationConfig
from pipeline.curate import curate
from pipeline.engines.workers import make_parts
from pipeline.run import Run
from troubled.stages import STUBS

PLANNED = 12


def config(root, engine="threads", **changes) -> CurationConfig:
    trouble = changes.pop("trouble", None)
    settings = {
        "name": "stubs", "root": str(root), "samples": PLANNED, "part_size": 4, "engine": engine, "devices": [],
        "planning": {"test_share": 0.25}, **STUBS, **changes,
    }  # fmt: skip
    if trouble is not None:
        settings["filters"] = [{"use": "troubled.stages:Trouble", "config": trouble}]
    return CurationConfig.parse(settings, "test")


class Killed(BaseException):
    """What ends a curation at once."""


def stopped_before(stage: str, settings: CurationConfig) -> Run:
    """The run of a curation that was killed when it came to this stage."""

    def engine(jobs, progress, workers):
        if jobs and jobs[0].stage == stage:
            raise Killed
        return make_parts(jobs, progress, workers)

    try:
        curate(settings, engine)
    except Killed:
        return Run.of(settings)
    raise AssertionError(f"nothing of {stage} had to be made")


def contents(root) -> dict[str, str]:
    files = [p for p in sorted(Path(root).rglob("*")) if p.suffix in (".parquet", ".tar") and not p.is_symlink()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def outcome(result) -> dict[int, tuple]:
    """Sample number -> (status, error code) of the stage "trouble"."""
    run = result.run
    rows = [row for part in run.parts() for row in run.store("trouble").read(part).rows()]
    index = pd.read_parquet(result.manifest_url).set_index("sample_id")["index"]
    return {int(index[row["sample_id"]]): (row["status"], row["error_code"]) for row in rows}
