"""A short ``make chaos``: curations that are killed, or whose bucket refuses, end like those that nothing disturbs."""

import hashlib
import random
import subprocess
import time
from collections import Counter

import fsspec
import pytest
import s3fs
from chaos import kills
from chaos.bucket import BUCKET, bucket
from chaos.curations import Curation, Undisturbed
from chaos.kills import killed_rounds
from troubled.runs import config, contents

import pipeline.curate as curation
from data_schemas.io import storage
from pipeline.config import CurationConfig
from pipeline.curate import curate
from pipeline.run import Run


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path):
    small = {"samples": 12, "part_size": 3}
    in_peace, begun = Curation(tmp_path / "calm", "threads", {"nan": [7]}, **small), time.monotonic()
    curate(CurationConfig.load("embedded", str(in_peace.file), None, {}))
    calm = Undisturbed(in_peace.contents(), in_peace.made(), time.monotonic() - begun)
    faults = {"nan": [7], "crash_once": [11]}
    done = killed_rounds("local", 2, random.Random(1), tmp_path, calm, faults, **small)
    assert done["kills"] == sum(done["killed"].values()) == 2


class Remade:
    """A run that makes its only part anew after every kill, of which there are two."""

    root, kills = "remade", 0

    def __init__(self, *_given, **_changes):
        pass

    def start(self):
        return self

    def poll(self):
        return None

    def wait(self, seconds):
        if self.kills < 2:
            self.kills += 1
            raise subprocess.TimeoutExpired("remade", seconds)
        return 0

    def contents(self):
        return {}

    def parts(self):
        return {"part-00000.parquet": f"written {self.kills} times"}


def test_a_part_that_is_made_again_between_two_kills_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "Curation", Remade)
    monkeypatch.setattr(kills, "_kill", lambda *_: "group")
    with pytest.raises(AssertionError, match=r"made again, though they were whole: \['part-00000"):
        killed_rounds("local", 2, random.Random(0), tmp_path, Undisturbed({}, Counter(), 1.0))


@pytest.fixture
def refusing(monkeypatch):
    """A bucket whose every refusal reaches this project: the libraries below do not ask again by themselves."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(storage, "PAUSES", (0.01,) * 8)
    with bucket(random.Random(0)) as throttled:
        yield throttled


def in_bucket(root: str) -> dict[str, str]:
    fs, path = fsspec.core.url_to_fs(root)
    fs.invalidate_cache()
    found = [name for name in fs.find(path) if name.endswith((".parquet", ".tar"))]
    return {name.removeprefix(f"{path}/"): hashlib.sha256(fs.cat_file(name)).hexdigest() for name in found}


@pytest.mark.slow
def test_a_bucket_that_refuses_requests_costs_nothing(refusing, tmp_path, monkeypatch):
    """Every kind of request is refused some time in these: reading, writing, listing, copying."""
    settings, root = config(f"s3://{BUCKET}/runs"), f"s3://{BUCKET}/runs"

    def refuse(run: Run) -> None:
        refusing.share = 0.2

    monkeypatch.setattr(curation, "_sweep", refuse)  # before that, a mistyped address is told at once
    curate(settings)
    assert refusing.refused > 50
    refusing.share = 0.0
    again = curate(settings)
    assert all(summary.cached for made in again.summaries.values() for summary in made)
    curate(config(tmp_path))
    refusing.share = 0.0
    assert in_bucket(root) == contents(tmp_path)
