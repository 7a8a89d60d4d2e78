"""The folder that trainers read holds the kept samples and no others, whatever was there before."""

import datetime
import gc
import json
import os
import tarfile
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small.curation import made, small_config
from troubled.runs import config

from data_schemas.shards import expand_shards, sample_ids
from data_schemas.tables import REVIEW
from pipeline.core.parts import PartPictures
from pipeline.curate import curate
from pipeline.dataset.sharding import assign
from pipeline.report.results import write_results


def in_shards(result) -> set[str]:
    return {i for url in expand_shards(f"{result.dataset_url}/*.tar") for i in sample_ids(url)}


def kept(result) -> set[str]:
    manifest = pd.read_parquet(result.manifest_url)
    return set(manifest[(manifest.decision == "kept") & (manifest.planted_fault == "none")].sample_id)


def reject(root, sample_ids):
    rows = [
        {"sample_id": i, "alpha_threshold": None, "matte": None, "verdict": "rejected", "reason": "dull",
         "reviewer": "me", "time": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}
        for i in sample_ids
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=REVIEW.arrow()), root / "small" / "review.parquet")


def test_samples_that_a_reviewer_rejects_leave_the_shards(copied):
    config = small_config(copied, shards={"samples_per_shard": 2})
    before = kept(curate(config))
    rejected = sorted(before)[:4]
    reject(copied, rejected)
    result = curate(config)
    assert kept(result) == before - set(rejected)
    assert in_shards(result) == kept(result), "fewer shards are needed, and the folder holds no older one"
    (copied / "small" / "review.parquet").unlink()
    assert in_shards(curate(config)) == before, "and the other way round"


def test_shards_of_another_size_do_not_mix(copied):
    first = curate(small_config(copied, shards={"samples_per_shard": 1}))
    assert len(expand_shards(f"{first.dataset_url}/*.tar")) == len(kept(first))
    second = curate(small_config(copied, shards={"samples_per_shard": 100}))
    assert in_shards(second) == kept(second) == kept(first)
    assert len(expand_shards(f"{second.dataset_url}/*.tar")) == 2


@pytest.mark.slow
def test_a_published_dataset_is_never_written_again(copied):
    config = small_config(copied)
    first = Path(os.path.realpath(curate(config).dataset_url))
    before = {p.name: (p.stat().st_ino, p.read_bytes()) for p in first.iterdir() if p.suffix == ".tar"}
    curate(config, again="synthesis")
    curate(small_config(copied, decide={"thresholds": {"identity_low": 1.0}}))
    assert {p.name: (p.stat().st_ino, p.read_bytes()) for p in first.iterdir() if p.suffix == ".tar"} == before


def test_the_link_is_turned_in_one_step_whatever_lies_around(copied, monkeypatch):
    for name in (f"dataset.{os.getpid()}.tmp", f".dataset.{os.getpid()}.tmp"):
        os.symlink("nowhere", copied / "small" / name)  # as a killed process with this number leaves it
    turned = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (turned.append(str(b)), real(a, b))[1])
    result = curate(small_config(copied, shards={"samples_per_shard": 3}))
    assert turned.count(str(copied / "small" / "dataset")) == 1
    assert in_shards(result) == kept(result)


@pytest.mark.parametrize("harm", ["damaged", "gone", "foreign"])
def test_a_published_dataset_that_was_tampered_with_is_put_together_again(copied, harm):
    folder = Path(os.path.realpath(copied / "small" / "dataset"))
    victim = folder / "train-00000.tar"
    if harm == "damaged":
        victim.write_bytes(victim.read_bytes()[:-2000])
    elif harm == "gone":
        victim.unlink()
    else:
        (folder / "train-00099.tar").write_bytes(victim.read_bytes())
    result = curate(small_config(copied))
    assert in_shards(result) == kept(result)
    assert not (folder / "train-00099.tar").exists()
    with tarfile.open(victim) as tar:
        assert tar.getmembers()


@pytest.mark.slow
def test_a_bucket_gets_a_dataset_of_exactly_the_kept_samples(bucket):
    config = small_config(bucket, shards={"samples_per_shard": 1})
    first = curate(config)
    assert in_shards(first) == kept(first)
    second = curate(small_config(bucket, shards={"samples_per_shard": 50}))
    assert in_shards(second) == kept(second) == kept(first)


@pytest.mark.slow
def test_the_outcome_is_told_with_what_it_was_before(small_run, copied):
    planned, before = 12, len(kept(small_run[0]))
    assert small_run[1]["kept"].startswith(f"{before} of {planned}")
    assert "(was" not in small_run[1]["kept"]
    stricter = write_results(curate(small_config(copied, decide={"thresholds": {"identity_low": 1.0}})))
    assert stricter["kept"].startswith(f"0 of {planned} (was {before}); rejected 12: identity_low 12")
    assert "shards" not in stricter, "shards that do not exist are not named"
    assert "test_shards" not in stricter
    back = write_results(curate(small_config(copied)))
    assert back["kept"].startswith(f"{before} of {planned} (was 0)")
    assert {"shards", "test_shards"} <= back.keys()
    assert write_results(curate(small_config(copied)))["kept"].startswith(f"{before} of {planned} (as before)")


def test_a_threshold_reads_no_tar_for_scores_and_only_kept_pictures_for_shards(copied, monkeypatch):
    """Decisions come from tables; a shard takes its pictures from where they lie, and no tar is read as a whole."""
    from pipeline.core import parts

    read = []
    real = parts.PartPictures.read
    monkeypatch.setattr(parts.PartPictures, "read", lambda self, i, name: (read.append(i), real(self, i, name))[1])
    monkeypatch.setattr(parts, "file_sha256", None)
    strict = curate(small_config(copied, decide={"thresholds": {"identity_low": 1.0}}))
    assert made(strict) == {"decide"}
    assert not read
    looser = curate(small_config(copied, decide={"thresholds": {"identity_low": 0.0}}))
    plan = pd.read_parquet(looser.manifest_url)
    pictures = {*kept(looser), *plan.reference_0_id, *plan.reference_1_id}
    assert set(read) <= pictures
    read.clear()
    curate(small_config(copied, decide={"thresholds": {"identity_low": 0.0}}))
    assert not read, "what is cached is not read"


def test_a_run_at_home_lies_in_one_place(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for root in ("~/runs", f"file://{home}/runs"):
        places = write_results(curate(config(root)))
        assert expand_shards(places["shards"])
        assert Path(places["report"]).is_file()
    assert not list(here.iterdir())
    assert [path.name for path in (home / "runs" / "stubs" / "datasets").glob("[!v]*")] == [
        (home / "runs" / "stubs" / "dataset").resolve().name
    ]


def test_tars_that_were_brought_from_a_bucket_go_with_their_last_use(tmp_path, monkeypatch):
    """They may be of gigabytes, and many: none may wait for the garbage collector."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real, lying = PartPictures.fetch, []

    def fetch(self):
        real(self)
        lying.append(len(list(tmp_path.iterdir())))

    monkeypatch.setattr(PartPictures, "fetch", fetch)
    gc.disable()
    try:
        curate(config("memory://brought", part_size=2, workers=1, shards={"samples_per_shard": 12}))
        assert len(lying) >= 12, "of six parts those of two stages"
        assert max(lying) <= 4, "the shard, those of a part's two stages, and the next part's first"
        assert not list(tmp_path.iterdir())
    finally:
        gc.enable()


def test_shard_names_are_without_gaps():
    splits = ["train" if number % 3 else "test" for number in range(12)]
    held = [1, 3, 5, 7, 9, 11]
    assert assign(held, splits, 2) == {"train-00000": [1, 5], "train-00001": [7, 11], "test-00000": [3, 9]}


def test_the_report_tells_a_model_of_an_earlier_dataset(copied):
    config = small_config(copied)
    shards = json.loads((copied / "small" / "dataset" / "run.json").read_text())["shards"]
    training = copied / "small" / "training"
    training.mkdir()
    (training / "metrics.jsonl").write_text('{"step": 1, "loss": 4.0}\n{"step": 2, "lo')  # it is being written
    digests = {name: digest for name, digest in shards.items() if name.startswith("train-")}
    stated = json.dumps({"shards": [{"name": name, "sha256": digest} for name, digest in digests.items()]})
    of_before = json.dumps({"shards": digests})
    told = "trained on other shards"

    def tells(summary: str) -> bool:
        (training / "summary.json").write_text(summary)
        return told in Path(write_results(curate(config))["report"]).read_text()

    assert not tells(stated)
    assert not tells(of_before)
    reject(copied, sorted(kept(curate(config)))[:4])
    assert tells(stated)
    assert tells(of_before)
    assert not tells("{}"), "of a trainer that did not say yet"
    assert not tells('{"shards": 3}'), "damaged"
