"""The Prefect flows of the curation: the whole curation, and a rerun of one stage with all later ones."""

from __future__ import annotations

from typing import Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows.engine import engine_of_run, reports_mistakes, under_prefect
from pipeline.config import CurationConfig
from pipeline.curate import CurationResult, curate
from pipeline.remembered import taken_up
from pipeline.report.results import funnel_rows, picture_table, read_manifest, write_results


@flow(name="curate-instructar", log_prints=True, validate_parameters=True)
@reports_mistakes
def curate_instructar(
    config: CurationConfig = CurationConfig(), profile: str = "embedded", retry_errors: bool = False
) -> dict:
    """Plan, synthesise, matte, judge, compare, decide, shard and report one dataset.

    Args:
        config: What differs from the profile's settings.
        profile: The settings to start from, embedded or paper.
        retry_errors: Whether samples that failed in an earlier run are made again.

    Returns:
        The paths of the results by name.
    """
    return _finish(curate(config.on_profile(profile), engine_of_run(), retry_errors=retry_errors))


@flow(name="rerun-stage", log_prints=True)
@reports_mistakes
def rerun_stage(
    stage: Literal["references", "plan", "synthesis", "matting", "semantics", "identity", "quality", "decide", "shards"]
    | str,
    config: CurationConfig = CurationConfig(),
    profile: str | None = None,
) -> dict:
    """Make one stage of a run again, and all stages after it, even where the cache has their parts.

    Args:
        stage: The first stage to make again.
        config: Name and root of the run, and what differs from its settings.
        profile: The settings to start from; without one those that the run was last curated with.

    Returns:
        The paths of the results by name.
    """
    settings = taken_up(config) if profile is None else config.on_profile(profile)
    return _finish(curate(settings, engine_of_run(), again=stage))


def _finish(result: CurationResult) -> dict:
    """Write the report and the Prefect artifacts. Returns the paths of the results by name."""
    results = write_results(result)
    if under_prefect():
        manifest = read_manifest(result)
        create_table_artifact(funnel_rows(result, manifest), key="funnel", description="What became of the samples")
        create_markdown_artifact(picture_table(result, manifest), key="pictures", description="Kept, rejected and why")
        if flow_run.parent_flow_run_id is None:  # otherwise the parent flow prints them with its own results
            for name, path in results.items():
                print(f"{name:<12} {path}")
    return results
