"""A bucket that throttles: asked again, then one line; nothing that is there is made again."""

import errno

import buckets
import pytest
from s3fs import S3FileSystem
from troubled.runs import config

from data_schemas.io import storage
from data_schemas.io.storage import Unreadable
from pipeline.curate import curate


@pytest.fixture
def throttled(monkeypatch):
    """Has so many requests of a kind for files of the synthesis fail, as they do after the library's own tries."""
    real = S3FileSystem._call_s3

    async def call(self, method, *rest, **options):
        if method == throttle.kind and "/synthesis/" in options.get("Key", "") and throttle.left:
            throttle.left -= 1
            raise OSError(errno.EBUSY, "Please reduce your request rate.")
        return await real(self, method, *rest, **options)

    def throttle(kind, times):
        throttle.kind, throttle.left = kind, times
        monkeypatch.setattr(S3FileSystem, "_call_s3", call)

    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))
    return throttle


@pytest.mark.slow
@pytest.mark.long
def test_nothing_is_made_again_because_a_bucket_throttles(bucket, throttled):
    curate(config(bucket, workers=1))
    before = buckets.contents(bucket)
    for kind in ("get_object", "head_object"):
        throttled(kind, times=2)
        result = curate(config(bucket, workers=1))
        assert all(summary.cached for made in result.summaries.values() for summary in made)
        assert throttled.left == 0
        throttled(kind, times=10_000)
        with pytest.raises(Unreadable, match=r"s3://.*/synthesis/.* cannot be read .*request rate.*same command"):
            curate(config(bucket, workers=1))
        throttled(kind, times=0)
        assert buckets.contents(bucket) == before


@pytest.mark.slow
@pytest.mark.long
def test_what_a_bucket_does_not_take_is_offered_again(bucket, throttled):
    throttled("put_object", times=2)
    curate(config(bucket, workers=1))
    assert throttled.left == 0
    before = buckets.contents(bucket)
    throttled("put_object", times=10_000)
    with pytest.raises(Unreadable, match=r"s3://.*/synthesis/.* cannot be written .*request rate.*same command"):
        curate(config(bucket, workers=1), again="synthesis")
    throttled("put_object", times=0)
    curate(config(bucket, workers=1))
    assert buckets.contents(bucket) == before
