"""Parts that Prefect's tasks make, and parts that a shell made in between."""

import pytest
from prefect.testing.utilities import prefect_test_harness
from troubled.runs import config

from data_schemas.errors import RunFailed
from flows.engine import prefect_engine
from pipeline.curate import curate


@pytest.mark.slow
@pytest.mark.long
def test_what_a_shell_mended_is_not_taken_as_it_was(tmp_path, monkeypatch):
    """Prefect has results of its own of the parts, from before."""
    settings = config(tmp_path, filters=[{"use": "troubled.stages:FailsAtFirst"}])
    monkeypatch.setenv("FAILS_AT_FIRST", "1")
    with prefect_test_harness():
        with pytest.raises(RunFailed, match="samples failed"):
            curate(settings, prefect_engine)
        monkeypatch.delenv("FAILS_AT_FIRST")
        curate(settings, retry_errors=True)
        result = curate(settings, prefect_engine)
    assert sum(summary.counts.get("error", 0) for summary in result.summaries["fails"]) == 0
    assert all(summary.cached for summaries in result.summaries.values() for summary in summaries)
    whole = {part: result.run.store("fails").read(part).digest for part in result.run.parts()}
    assert {summary.part: summary.digest for summary in result.summaries["fails"]} == whole
