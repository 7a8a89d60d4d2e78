"""The newest dataset of a run in a bucket has an address that stays, as the link has on a disk."""

import hashlib
import json
from pathlib import Path

import fsspec
import pytest
from commands import run_here
from small.run import tiny_config, write_config
from troubled.runs import PLANNED, config

import tokenar.cli
from data_schemas.errors import UserError
from data_schemas.shards import expand_shards, sample_ids
from pipeline.curate import curate
from pipeline.dataset.curated import open_run
from tokenar.config import with_changes


@pytest.mark.slow
def test_the_address_goes_with_the_newest_dataset(bucket):
    address = f"{bucket}/stubs/dataset/train-*.tar"
    with pytest.raises(UserError, match=r"no shard matches"):
        expand_shards(address)
    first = curate(config(bucket))
    assert expand_shards(address) == expand_shards(f"{first.dataset_url}/train-*.tar")
    second = curate(config(bucket, shards={"samples_per_shard": 2}))
    assert second.dataset_url != first.dataset_url
    found = expand_shards(address)
    assert found == expand_shards(f"{second.dataset_url}/train-*.tar")
    assert len(found) > len(expand_shards(f"{first.dataset_url}/train-*.tar")), "the first is still there"
    opened = open_run(f"{bucket}/stubs")
    assert expand_shards(opened.shards()) == found
    assert (
        sum(len(sample_ids(url)) for split in ("train", "test") for url in expand_shards(opened.shards(split)))
        == PLANNED
    )
    curate(config(bucket))
    assert expand_shards(address) == expand_shards(f"{first.dataset_url}/train-*.tar"), "and it can become the newest"

    fs = fsspec.filesystem("s3")
    manifest = fs.cat_file(first.manifest_url)
    pointer = json.loads(fs.cat_file(f"{bucket}/stubs/dataset.json"))
    assert pointer["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()


def test_shards_that_were_found_stay_those_of_one_dataset(tmp_path):
    """Encoding a dataset can take hours, and a curation may end meanwhile."""
    first = Path(curate(config(tmp_path)).dataset_url).resolve()
    found = expand_shards(f"{tmp_path}/stubs/dataset/t*.tar")
    before = [hashlib.sha256(Path(url).read_bytes()).hexdigest() for url in found]
    curate(config(tmp_path, seed=9))
    assert [hashlib.sha256(Path(url).read_bytes()).hexdigest() for url in found] == before
    assert {Path(url).parent for url in found} == {first}
    assert expand_shards(f"{tmp_path}/stubs/dataset/t*.tar") != found


@pytest.mark.parametrize("content", [b"", b"[]", b'{"dataset": "../x/datasets/0123456789abcdef"}', b'{"dataset": 3}'])
def test_an_address_that_leads_elsewhere_is_refused(bucket, content):
    fsspec.filesystem("s3").pipe_file(f"{bucket}/run/dataset.json", content)
    with pytest.raises(UserError, match=r"/run/dataset\.json: does not name a dataset of its run; curate"):
        expand_shards(f"{bucket}/run/dataset/train-*.tar")


@pytest.mark.slow
def test_a_training_reads_the_newest_dataset(bucket, tmp_path):
    result = curate(config(bucket))
    dataset = f"{bucket}/stubs/dataset"
    settings = with_changes(
        tiny_config(tmp_path, tmp_path / "out", steps=2),
        shards=f"{dataset}/train-*.tar",
        val_shards=f"{dataset}/test-*.tar",
    )
    done = run_here(tokenar.cli.train_main, "tokenar-train", "--config", write_config(settings, tmp_path / "s.json"))
    assert done.returncode == 0, done.stderr
    fs = fsspec.filesystem("s3")
    trained = json.loads((tmp_path / "out" / "summary.json").read_text())["shards"]
    names = [url.rpartition("/")[2] for url in expand_shards(f"{result.dataset_url}/train-*.tar")]
    contents = {name: fs.cat_file(f"{result.dataset_url}/{name}") for name in names}
    assert trained == [
        {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]
