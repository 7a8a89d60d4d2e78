"""The version that a dataset gets."""

import json
import os
import shutil
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from small.curation import small_config
from small.datasets import row
from troubled.runs import config

from pipeline.curate import curate
from pipeline.dataset.versions import Published, published, step, stepped
from pipeline.report.results import write_results

TWO = [row(0), row(1)]


def of(*rows):
    return pd.DataFrame(rows)[["sample_id", "decision", "split", "shard", "content"]]


@pytest.mark.parametrize(
    ("new", "how"),
    [
        ([row(0), row(1), row(2)], "minor"),
        ([row(2, shard=1), row(1), row(0)], "minor"),
        ([row(0), row(1), row(2, shard=None)], "patch"),
        ([row(0), row(1, similarity_min=0.1)], "patch"),
        ([row(0)], "major"),
        ([row(0), row(1, shard=None)], "major"),
        ([row(0), row(1, content="other"), row(2)], "major"),
        ([row(0), row(1, shard=1)], "major"),
        ([row(0), row(1, split="test", shard=0)], "major"),
        ([row(0), row(1, decision="rejected")], "major"),  # with shards.unfiltered
        ([row(0), row(1, content=None)], "major"),  # nobody can tell
    ],
)
def test_a_step_tells_what_happened_to_those_that_are_held(new, how):
    assert step(of(*TWO), of(*new)) == how


def test_steps():
    assert [stepped("1.4.2", how) for how in ("major", "minor", "patch")] == ["2.0.0", "1.5.0", "1.4.3"]
    assert stepped("1.9.9", "minor") == "1.10.0"


def version(result) -> str:
    return json.loads(Path(result.dataset_url, "run.json").read_text())["version"]


def looser(root, low: float):
    return config(root, trouble={}, samples=24, decide={"thresholds": {"troubled": low}})


def test_a_run_counts_and_an_older_dataset_keeps_its_version(tmp_path, capsys):
    first = curate(looser(tmp_path, 0.0))
    assert version(first) == "1.0.0"
    folder = os.path.realpath(first.dataset_url)
    second = curate(looser(tmp_path, 12.0))  # a dozen are gone
    assert version(second) == "2.0.0"
    assert version(curate(looser(tmp_path, 0.0))) == "1.0.0", "the same content, the same version"
    assert os.path.realpath(first.dataset_url) == folder
    third = curate(looser(tmp_path, 18.0))
    assert version(third) == "3.0.0", "it follows the highest, so that no version is given twice"
    shutil.rmtree(os.path.realpath(third.dataset_url))
    assert version(curate(looser(tmp_path, 20.0))) == "4.0.0", "with what is gone nobody can compare"
    assert version(curate(looser(tmp_path, 18.0))) == "3.0.0"
    datasets = tmp_path / "stubs" / "datasets"
    known = published(fsspec.filesystem("file"), str(datasets))
    assert [entry.version for entry in known] == ["2.0.0", "1.0.0", "4.0.0", "3.0.0"]
    (datasets / "versions.json").write_text('{"published": [{"dataset": "../x", "version": "9.0.0"}, 1]}')
    assert version(curate(looser(tmp_path, 12.0))) == "2.0.0", "the datasets themselves tell it"
    assert version(curate(looser(tmp_path, 19.0))) == "4.1.0", "all that 4.0.0 holds, and one sample more"


def test_samples_that_are_added_are_a_minor_step(tmp_path):
    strict = config(tmp_path, trouble={}, decide={"thresholds": {"troubled": 6.0}}, shards={"samples_per_shard": 100})
    assert version(curate(strict)) == "1.0.0"
    loose = config(tmp_path, trouble={}, decide={"thresholds": {"troubled": 0.0}}, shards={"samples_per_shard": 100})
    assert version(curate(loose)) == "1.1.0"


def test_the_card_names_the_version(copied):
    result = curate(small_config(copied, decide={"thresholds": {"identity_low": 0.99}}))
    write_results(result)
    assert "\nVersion 2.0.0. " in Path(result.dataset_url, "README.md").read_text()


@pytest.mark.slow
def test_a_bucket_counts_too(bucket):
    for low in (0.0, 12.0, 0.0):
        curate(looser(bucket, low))
    known = published(fsspec.filesystem("s3"), f"{bucket}/stubs/datasets")
    assert [entry.version for entry in known] == ["2.0.0", "1.0.0"]
    assert isinstance(known[0], Published)
