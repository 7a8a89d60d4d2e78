"""A small curation run on the packaged photographs, made once for the tests that read it."""

import pytest

from pipeline.config import CurationConfig
from pipeline.curate import curate
from pipeline.results import write_results

SMALL = {"samples": 12, "part_size": 4, "planning": {"test_share": 0.25}, "shards": {"samples_per_shard": 4}}


def small_config(root, **changes) -> CurationConfig:
    return CurationConfig.parse({"name": "small", "root": str(root), **SMALL, **changes}, "test")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """(result, places) of an undisturbed run; read only."""
    result = curate(small_config(tmp_path_factory.mktemp("runs")))
    return result, write_results(result)
