"""A short ``make chaos``: curations that are killed, or whose bucket refuses, end like those that nothing disturbs."""

import random

import fsspec
import pytest
import s3fs
from chaos.bucket import BUCKET, bucket
from chaos.curations import undisturbed
from chaos.kills import killed_rounds
from troubled.runs import config, contents

from data_schemas.io import storage
from data_schemas.io.storage import Unreadable
from pipeline.curate import curate
from pipeline.remembered import remembered, taken_up


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path):
    small = {"samples": 12, "part_size": 3}
    calm = undisturbed(tmp_path / "calm", "threads", {"nan": [7]}, **small)
    faults = {"nan": [7], "crash_once": [11]}
    done = killed_rounds("local", 2, random.Random(1), tmp_path, calm, faults, **small)
    assert done["kills"] == sum(done["killed"].values()) == 2


@pytest.fixture
def refusing(monkeypatch):
    """A bucket whose every refusal reaches this project: the libraries below do not ask again by themselves."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(storage, "PAUSES", (0.01,) * 8)
    with bucket(random.Random(0)) as throttled:
        yield throttled


def in_bucket(root: str) -> dict[str, bytes]:
    fs, path = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()
    found = fs.find(path, refresh=True)
    return {name.removeprefix(f"{path}/"): fs.cat_file(name) for name in found if name.endswith((".parquet", ".tar"))}


@pytest.mark.slow
def test_a_bucket_that_refuses_requests_costs_nothing(refusing, tmp_path):
    """Every kind of request is refused some time in these: reading, writing, listing, copying."""
    settings, root = config(f"s3://{BUCKET}/runs"), f"s3://{BUCKET}/runs"
    refusing.share = 0.2
    curate(settings)
    assert refusing.refused > 50
    again = curate(settings)
    assert all(summary.cached for made in again.summaries.values() for summary in made)
    assert taken_up(settings) == settings, "settings that could not be read are not taken for missing"
    refusing.share = 0.0
    before = in_bucket(root)
    curate(config(tmp_path))
    assert set(contents(tmp_path)) == set(before)
    refusing.closed = float("inf")
    with pytest.raises(Unreadable, match=r"settings\.json cannot be read .*mend the storage, then run the same"):
        remembered(settings)
    refusing.closed = 0.0
    assert in_bucket(root) == before
