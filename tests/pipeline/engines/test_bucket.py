"""A run in a bucket has the bytes of one on a disk, whatever made it."""

import buckets
import pytest
from troubled.runs import config, contents

from pipeline.curate import curate


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The files of a run that threads made on a disk."""
    root = tmp_path_factory.mktemp("disk")
    curate(config(root))
    return contents(root)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["threads", "local", pytest.param("ray", marks=pytest.mark.long)])
def test_every_engine_makes_the_bytes_in_a_bucket_that_threads_make_on_a_disk(on_disk, bucket, engine):
    result = curate(config(bucket, engine, workers=2))
    assert buckets.contents(bucket) == on_disk
    assert {"stubs/plan", "stubs/synthesis", "stubs/shards", "stubs/datasets"} <= {
        path.rsplit("/", 2)[0] for path in on_disk
    }
    again = curate(config(bucket))
    assert again.manifest_url == result.manifest_url
    assert all(summary.cached for made in again.summaries.values() for summary in made)
