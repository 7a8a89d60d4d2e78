"""A small curation run on the packaged photographs, made once for the tests that read it."""

import pytest
from small_curation import small_config

from pipeline.curate import curate
from pipeline.results import write_results


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """(result, places) of an undisturbed run; read only."""
    result = curate(small_config(tmp_path_factory.mktemp("runs")))
    return result, write_results(result)
