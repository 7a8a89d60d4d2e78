"""The flows of the curation: the whole road, and one stage again with what follows it."""

from __future__ import annotations

from typing import Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.engine import prefect_engine
from pipeline.config import CurationConfig
from pipeline.curate import CurationResult, curate
from pipeline.results import funnel_rows, picture_strip, read_manifest, write_results


@flow(name="curate-instructar", log_prints=True, validate_parameters=True)
def curate_instructar(
    config: CurationConfig = CurationConfig(), profile: str = "embedded", retry_errors: bool = False
) -> dict:
    """Plan, synthesise, matte, judge, compare, decide, shard and report one dataset.

    ``profile`` names the settings to start from ("embedded", "paper"), ``config`` is laid on top. ``retry_errors``
    makes the samples again that failed in an earlier run. Returns where everything is.
    """
    return _finish(curate(config.on_profile(profile), prefect_engine, retry_errors=retry_errors))


@flow(name="rerun-stage", log_prints=True)
def rerun_stage(
    stage: Literal["references", "plan", "synthesis", "matting", "semantics", "identity", "decide", "shards"] | str,
    config: CurationConfig = CurationConfig(),
    profile: str = "embedded",
) -> dict:
    """Make one stage of a run again, and everything that follows it, whatever the cache holds."""
    return _finish(curate(config.on_profile(profile), prefect_engine, again=stage))


def _finish(result: CurationResult) -> dict:
    """Report, artifacts and the paths that users look for."""
    places, manifest = write_results(result), read_manifest(result)
    create_table_artifact(funnel_rows(result, manifest), key="funnel", description="What became of the planned samples")
    create_markdown_artifact(picture_strip(result, manifest), key="pictures", description="Kept and rejected samples")
    for name, place in places.items():
        print(f"{name:<10} {place}")
    return places
