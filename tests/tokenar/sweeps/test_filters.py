"""The sweep over filters: what is trained on, from a manifest beside the shards, and what its table says."""

import json

import pandas as pd
import pytest
from small.run import command, make_sample, tiny_config, write_shard

from data_schemas.errors import UserError
from data_schemas.shards import expand_shards, read_shard
from tokenar.config import with_changes
from tokenar.sweeps.filters import choices, sweep
from tokenar.train.loop import train_model


@pytest.fixture
def curated(shards, tmp_path):
    """The small shards with a manifest: of ten training samples three are rejected, two of them faulty, one slipped."""
    for path in shards.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = []
    for split in ("train", "test"):
        ids = [s.sample_id for url in expand_shards(f"{tmp_path}/{split}-*.tar") for s in read_shard(url)]
        rows += [{"sample_id": i, "split": split, "shard": "x.tar", "decision": "kept", "planted_fault": "none"}
                 for i in ids]  # fmt: skip
    manifest = pd.DataFrame(rows)
    manifest.loc[[0, 3, 4], "decision"] = "rejected"
    manifest.loc[[0, 3, 5], "planted_fault"] = "swapped"
    manifest.to_parquet(tmp_path / "manifest.parquet")
    return tmp_path


def test_the_choices(curated):
    manifest = pd.read_parquet(curated / "manifest.parquet")
    train = manifest[manifest.split == "train"]
    made = choices(train, 0)
    assert made["unfiltered"] == train.sample_id.tolist()
    assert made["filtered"] == train.sample_id.drop([0, 3, 4]).tolist()
    assert made["without faults"] == train.sample_id.drop([0, 3, 5]).tolist()
    assert len(made["thinned"]) == len(made["filtered"])
    assert choices(train, 0) == made
    assert any(choices(train, seed)["thinned"] != made["thinned"] for seed in range(1, 5))


@pytest.mark.slow
def test_one_table_of_the_same_training_on_every_choice(curated, tmp_path):
    config = tiny_config(curated, tmp_path / "sweep", steps=2, variations=0)
    table = sweep(config, seeds=2, limit=2, say=lambda line: None)
    assert [row["run"] for row in table] == ["unfiltered", "thinned", "filtered", "without faults"]
    assert [row["samples_trained"] for row in table] == [10, 7, 7, 7]
    assert [row["faulty_share"] for row in table][0::2] == [0.3, pytest.approx(1 / 7)]
    assert "against" not in table[2]
    assert all(row["against"] == "filtered" for row in table if row["run"] != "filtered")
    page = (tmp_path / "sweep/filters.md").read_text()
    assert "| unfiltered | 10 | 0.3000 |" in page
    assert "identity against filtered" in page
    assert json.loads((tmp_path / "sweep/filters.json").read_text())[3]["run"] == "without faults"
    manifest = pd.read_parquet(curated / "manifest.parquet")
    manifest.loc[1, "decision"] = "rejected"
    manifest.to_parquet(curated / "manifest.parquet")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("model.safetensors")}
    sweep(config, seeds=2, limit=2, say=lambda line: None)
    again = {p.parts[-3].rpartition("-")[0] for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp}
    assert again == {"filtered", "thinned"}, "those whose samples are others now"


def test_only_some_samples_are_trained_on(curated, tmp_path):
    listed = tmp_path / "ids.txt"
    ids = [s.sample_id for url in expand_shards(f"{curated}/train-*.tar") for s in read_shard(url)]
    listed.write_text("\n".join(ids[:4]))
    config = tiny_config(curated, tmp_path / "run", steps=1, only=str(listed), variations=0)
    assert train_model(config)["finished"]
    listed.write_text("nobody\n")
    with pytest.raises(UserError, match="no sample 'nobody'"):
        train_model(with_changes(config, out=str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"away.*sample id on every line"):
        train_model(with_changes(config, only=str(tmp_path / "away"), out=str(tmp_path / "third")))


def test_shards_that_do_not_tell_where_subjects_are_are_refused_at_once(curated, tmp_path):
    sample = make_sample(0, "test", 64)
    del sample.info["boxes"]
    write_shard(tmp_path / "bare" / "test-0.tar", [sample])
    config = tiny_config(curated, tmp_path / "sweep", val_shards=f"{tmp_path}/bare/*.tar")
    with pytest.raises(UserError, match=r"bare/\*.tar: no sample tells where its subjects are"):
        sweep(config)


def test_what_the_sweep_needs_is_said(shards, curated, tmp_path):
    done = command("train", "--sweep", "filters", "--shards", f"{shards}/train-*.tar", "--val-shards",
                   f"{shards}/test-*.tar", "--out", str(tmp_path / "sweep"))  # fmt: skip
    assert done.returncode == 2
    assert "manifest.parquet: no manifest there" in done.stderr
    manifest = pd.read_parquet(curated / "manifest.parquet").assign(decision="kept")
    manifest.to_parquet(curated / "manifest.parquet")
    with pytest.raises(UserError, match=r"none of them rejected; curate with --set shards\.unfiltered=true"):
        sweep(tiny_config(curated, tmp_path / "sweep"))
