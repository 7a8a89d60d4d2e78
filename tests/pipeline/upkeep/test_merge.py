"""`instructar merge`: one dataset of several, or one line that says why not."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import mlcroissant
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_here
from small.datasets import RULES, STAGES, row, table, write_dataset, write_shards
from small.run import in_process, tiny_config, write_config
from troubled.runs import config

from data_schemas.errors import UserError
from data_schemas.shards import expand_shards, read_distinct, read_shard, sample_ids
from pipeline import cli
from pipeline.curate import curate
from pipeline.dataset.opened import open_dataset
from pipeline.exchange.hub import export_to_hub
from pipeline.upkeep import merge as merging
from pipeline.upkeep.diff import diff
from pipeline.upkeep.merge import merge


def ask(*arguments):
    return run_here(cli.main, "instructar", "merge", *arguments)


def named(name: str) -> dict:
    return {"config": {"name": name, "seed": 0}, "fingerprints": {"plan": f"{name}-plan"}}


@pytest.fixture
def two(tmp_path):
    """Two datasets: of four train samples in two shards and one test sample, and of one and one."""
    first = [row(0), row(1), row(2, shard=1), row(3, shard=1), row(4, "test"), row(5, shard=None)]
    write_shards(tmp_path / "a", first, version="1.2.0", **named("cats"))
    write_shards(tmp_path / "b", [row(10), row(11, "test"), row(12, shard=None)], **named("dogs"))
    return str(tmp_path / "a"), str(tmp_path / "b")


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def in_shards(folder: Path) -> dict[str, list[str]]:
    return {Path(url).name: sample_ids(url) for url in expand_shards(f"{folder}/*.tar")}


def test_shards_are_renumbered_and_the_manifest_follows(two, tmp_path):
    (tmp_path / "a" / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    done = ask(*two, "--out", tmp_path / "both")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/both: 9 samples planned, 5 shards; there twice: 0\n"
    held = in_shards(tmp_path / "both")
    assert held == {
        "train-00000.tar": ["s00", "s01"], "train-00001.tar": ["s02", "s03"], "train-00002.tar": ["s10"],
        "test-00000.tar": ["s04"], "test-00001.tar": ["s11"],
    }  # fmt: skip
    manifest = pd.read_parquet(tmp_path / "both" / "manifest.parquet")
    assert manifest.sample_id.tolist() == ["s00", "s01", "s02", "s03", "s04", "s05", "s10", "s11", "s12"]
    told = manifest.dropna(subset="shard").groupby("shard").sample_id.apply(list).to_dict()
    assert told == held
    assert (tmp_path / "both" / "train-00002.tar").samefile(tmp_path / "b" / "train-00000.tar"), "linked, not copied"
    facts = json.loads((tmp_path / "both" / "run.json").read_text())
    assert [(p["name"], p["version"], p["fingerprints"]) for p in facts["parents"]] == [
        ("cats", "1.2.0", {"plan": "cats-plan"}), ("dogs", "1.0.0", {"plan": "dogs-plan"}),
    ]  # fmt: skip
    assert (facts["name"], facts["version"], facts["stages"]) == ("both", "1.0.0", STAGES)
    assert facts["shards"] == {
        name: digest for name, digest in contents(tmp_path / "both").items() if name.endswith(".tar")
    }
    card = (tmp_path / "both" / "README.md").read_text()
    assert "- cats, version 1.2.0, [its card](cards/00.md)" in card
    assert (tmp_path / "both" / "cards" / "00.md").read_text() == (tmp_path / "a" / "README.md").read_text()
    assert str(tmp_path) not in json.dumps(facts) + card, "nothing of this machine"


def test_the_same_parents_give_the_same_bytes(two, tmp_path):
    for place in ("x", "y"):
        assert ask(*two, "--out", tmp_path / place / "both").returncode == 0
    assert contents(tmp_path / "x" / "both") == contents(tmp_path / "y" / "both")


def test_the_trainer_reads_it(two, tmp_path):
    assert ask(*two, "--out", tmp_path / "both").returncode == 0
    settings = tiny_config(tmp_path / "both", tmp_path / "trained", steps=2, batch=2, save_every=2)
    done = in_process("train", "--config", write_config(settings, tmp_path / "settings.json"))
    assert done.returncode == 0, done.stderr
    shards = json.loads((tmp_path / "trained" / "summary.json").read_text())["shards"]
    assert [shard["name"] for shard in shards] == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]


def test_a_sample_that_both_hold_is_kept_once_with_its_bytes(two, tmp_path):
    write_shards(tmp_path / "c", [row(2), row(20), row(4, "test"), row(5, shard=None)], **named("more"))
    done = ask(two[0], tmp_path / "c", "--out", tmp_path / "both")
    assert "7 samples planned, 4 shards; there twice: 3" in done.stdout, done.stderr
    assert in_shards(tmp_path / "both") == {
        "train-00000.tar": ["s00", "s01"], "train-00001.tar": ["s02", "s03"], "train-00002.tar": ["s20"],
        "test-00000.tar": ["s04"],
    }  # fmt: skip
    assert len(list(read_distinct(expand_shards(f"{tmp_path}/both/*.tar")))) == 6
    (kept,) = read_shard(f"{tmp_path}/both/train-00002.tar")
    (_, whole) = read_shard(f"{tmp_path}/c/train-00000.tar")
    assert kept == whole
    facts = json.loads((tmp_path / "both" / "run.json").read_text())
    assert facts["shards"]["train-00002.tar"] == contents(tmp_path / "both")["train-00002.tar"]
    assert pd.read_parquet(tmp_path / "both" / "manifest.parquet").sample_id.is_unique


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0, content="other")], "sample s00 has another content in {b} than in {a}"),
        ([row(5)], "sample s05 has another content"),
        ([row(5, shard=None, decision="undecided")], "sample s05 has another decision"),
        ([row(20, "test", subject_1_id="train-s0")], "subject train-s0 is in test of {b} and in train of {a}"),
        ([row(20, shard=None, subject_0_id="test-s1")], "subject test-s1 is in test of {a} and in train of {b}"),
        ([row(20, "test", reference_1_id="train-r0")], "reference train-r0 is in test of {b} and in train of {a}"),
    ],
)
def test_contradictions_are_refused(two, tmp_path, rows, said):
    write_shards(tmp_path / "c", rows)
    done = ask(two[0], tmp_path / "c", "--out", tmp_path / "both")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said.format(a=two[0], b=tmp_path / "c") in line
    assert not (tmp_path / "both").exists()
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_a_target_that_the_other_parent_has_in_its_other_split_is_refused(tmp_path):
    far, near = "0" * 64, "0" * 60 + "ffff"
    write_shards(tmp_path / "c", [row(0, target_phash=far), row(1, target_phash="f" * 64)])
    write_shards(tmp_path / "d", [row(20, "test", target_phash=near), row(21, "test", target_phash="a" * 64)])
    done = ask(tmp_path / "c", tmp_path / "d", "--out", tmp_path / "both")
    assert done.returncode == 2
    assert f"the target of s00 in train of {tmp_path}/c is a near-copy of that of s20 in test of" in done.stderr
    write_shards(tmp_path / "e", [row(20, "train", target_phash=near), row(21, "test", target_phash="a" * 64)])
    assert ask(tmp_path / "c", tmp_path / "e", "--out", tmp_path / "both").returncode == 0


def test_what_was_made_or_judged_otherwise_is_refused_unless_asked_for(two, tmp_path):
    newer = {**STAGES, "identity": {"version": 3, "model": "net@1", "settings": {"padding": 0.2}}}
    stricter = [RULES[0] | {"threshold": 0.6}, RULES[1]]
    write_shards(tmp_path / "c", [row(20, sharp=0.5)], stages=newer, rules=stricter)
    done = ask(two[0], tmp_path / "c", "--out", tmp_path / "both")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    for difference in ("identity.version 3 (was 2)", "identity.settings.padding 0.2 (was 0.1)",
                       "threshold.identity_low (similarity_min min) 0.6 (was 0.5)", "--allow-mixed"):  # fmt: skip
        assert difference in line
    assert ask(two[0], tmp_path / "c", "--out", tmp_path / "both", "--allow-mixed").returncode == 0
    manifest = pd.read_parquet(tmp_path / "both" / "manifest.parquet")
    assert manifest.sharp.isna().tolist() == [True] * 6 + [False]
    facts = json.loads((tmp_path / "both" / "run.json").read_text())
    assert "stages" not in facts
    assert [parent["stages"]["identity"]["version"] for parent in facts["parents"]] == [2, 3]
    again = ask(tmp_path / "both", two[1], "--out", tmp_path / "all")
    assert "both is itself merged of stages that differ" in again.stderr


def test_a_merged_dataset_is_merged_and_compared_like_any_other(two, tmp_path):
    write_shards(tmp_path / "c", [row(20)])
    assert ask(*two, "--out", tmp_path / "both").returncode == 0
    assert ask(tmp_path / "both", tmp_path / "c", "--out", tmp_path / "all").returncode == 0
    assert len(in_shards(tmp_path / "all")) == 6
    found = diff(*(open_dataset(str(tmp_path / name)) for name in ("both", "all")))
    assert (found["step"], found["added"]["count"], found["stages"]) == ("minor", 1, [])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("type", "column 'similarity_min' is double in {a} and string in {c}"),
        ("bytes", "c/train-00000.tar: has other bytes than run.json says"),
        ("gone", "c/train-00000.tar: is missing"),
        ("unnamed", "its manifest names a shard 'train-00000.tar' that run.json does not"),
        ("climbing", "run.json names a shard '../../train-00000.tar'"),
        ("old", "was published by a program that gave no versions"),
        ("nowhere", "no dataset is there"),
    ],
)
def test_what_cannot_be_merged_gets_one_line_and_leaves_nothing(two, tmp_path, harm, said):
    folder = tmp_path / "c"
    write_shards(folder, [row(20)])
    facts = json.loads((folder / "run.json").read_text())
    if harm == "type":
        own = table([row(20)])
        texts = own.set_column(own.column_names.index("similarity_min"), "similarity_min", pa.array(["much"]))
        pq.write_table(texts, folder / "manifest.parquet")
    elif harm == "bytes":
        (folder / "train-00000.tar").write_bytes((folder / "train-00000.tar").read_bytes() + bytes(512))
    elif harm == "gone":
        (folder / "train-00000.tar").unlink()
    elif harm == "unnamed":
        (folder / "run.json").write_text(json.dumps(facts | {"shards": {}}))
    elif harm == "climbing":
        pq.write_table(
            table([row(20, **{"shard": 0}) | {"shard": "../../train-00000.tar"}]), folder / "manifest.parquet"
        )
        (folder / "run.json").write_text(json.dumps(facts | {"shards": {"../../train-00000.tar": "0"}}))
    elif harm == "old":
        (folder / "run.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "version"}))
    else:
        shutil.rmtree(folder)
    done = ask(two[0], folder, "--out", tmp_path / "both")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said.format(a=two[0], c=folder) in line
    assert not (tmp_path / "both").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_there_is_never_written_to(two, tmp_path):
    for place in ("full", "file", "link"):
        target = tmp_path / place
        if place == "full":
            target.mkdir()
            (target / "mine").write_text("x")
        elif place == "file":
            target.write_text("x")
        else:
            os.symlink(tmp_path / "a", target)
        done = ask(*two, "--out", target)
        assert done.returncode == 2
        assert f"{place}: is there already; give another folder" in done.stderr
    (tmp_path / "empty").mkdir()
    assert ask(*two, "--out", tmp_path / "empty").returncode == 0
    assert "give a folder of this machine" in ask(*two, "--out", "s3://bucket/both").stderr


def test_an_interrupted_merge_leaves_nothing_under_the_name(two, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge([open_dataset(path) for path in two], str(tmp_path / "both"))
    assert not (tmp_path / "both").exists()
    assert not list(tmp_path.glob(".*"))


def test_where_links_are_impossible_shards_are_copied(two, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert ask(*two, "--out", tmp_path / "both").returncode == 0
    assert not (tmp_path / "both" / "train-00002.tar").samefile(tmp_path / "b" / "train-00000.tar")
    assert sum(map(len, in_shards(tmp_path / "both").values())) == 7


@pytest.mark.slow
def test_two_runs_become_one_dataset(tmp_path, bucket):
    """Runs over one pool with other draws; the second lies in a bucket."""
    draws = {"trouble": {}, "planning": {"test_share": 0.0}, "shards": {"samples_per_shard": 5}}
    first = curate(config(tmp_path, **draws))
    second = curate(config(bucket, seed=1, **draws))
    with pytest.raises(UserError, match="is there already"):
        merge([open_dataset(f"{tmp_path}/stubs")], f"{tmp_path}/stubs")
    done = merge([open_dataset(f"{tmp_path}/stubs"), open_dataset(f"{bucket}/stubs")], f"{tmp_path}/both")
    both = pd.read_parquet(tmp_path / "both" / "manifest.parquet")
    apart = pd.concat([pd.read_parquet(first.manifest_url), pd.read_parquet(second.manifest_url)])
    assert set(both.sample_id) == set(apart.sample_id)
    assert done["samples"] == len(both) == len(set(apart.sample_id))
    kept = sorted(i for ids in in_shards(tmp_path / "both").values() for i in ids)
    assert kept == sorted(set(apart.sample_id))
    folder = export_to_hub(f"{tmp_path}/both", f"{tmp_path}/published")
    described = mlcroissant.Dataset(jsonld=folder / "croissant.json")
    assert not described.metadata.ctx.issues.errors
    assert sorted(row["preview/sample_id"].decode() for row in described.records("preview")) == kept


def test_a_dataset_that_holds_nothing_is_merged_too(two, tmp_path):
    write_dataset(tmp_path / "c", [row(20, shard=None)], shards={})
    assert ask(tmp_path / "c", two[0], "--out", tmp_path / "both").returncode == 0
    assert len(in_shards(tmp_path / "both")) == 3
