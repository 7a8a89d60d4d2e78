"""What a notebook shows of a run, and selections that are saved: datasets like any other."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import run_here
from PIL import Image
from small.datasets import row, write_dataset

from data_schemas.errors import UserError
from data_schemas.shards import read_shard
from pipeline import cli
from pipeline.config import ShardsConfig
from pipeline.dataset.curated import open_run
from pipeline.dataset.frames.columns import DatasetColumns
from pipeline.dataset.frames.frame import Frame
from pipeline.dataset.frames.run_columns import RunColumns
from pipeline.dataset.opened import open_dataset
from pipeline.run import Run
from pipeline.upkeep.diff import diff
from tokenar.data.samples import read_samples

HOSTILE = '<img src=x onerror="alert(1)">\u202eevil\x07'


@pytest.fixture(scope="module")
def opened(small_run):
    return open_run(small_run[0].run.config.run_url)


def test_a_run_shows_its_pictures_and_its_funnel(opened):
    html = opened.show(5)._repr_html_()
    assert html.count("data:image/png;base64,") == 5
    assert "5 of 12 samples" in html
    funnel = opened.funnel()
    kept = (opened.manifest.decision == "kept").sum()
    assert funnel.left["planned"] == 12
    assert funnel.left["kept"] == kept
    assert funnel.breaks["identity_low"] == opened.manifest.reasons.apply(lambda r: "identity_low" in r).sum()
    first = next(iter(opened.images("foreground")))
    assert isinstance(first, Image.Image)
    assert first.mode == "RGBA"
    assert len(list(opened.images("alpha"))) == 12


def test_a_frame_is_chosen_sorted_and_read(opened):
    manifest = opened.manifest
    frame = opened.frame.where("decision = rejected").sorted_by("similarity_min")[:2]
    wanted = manifest[manifest.decision == "rejected"].sort_values("similarity_min").sample_id[:2]
    assert frame.ids == list(wanted)
    assert list(frame.to_pandas("similarity_min").columns) == ["sample_id", "similarity_min"]
    assert len(frame._repr_html_()) > 1000


def test_what_data_says_is_text(tmp_path):
    folder = write_dataset(tmp_path / "set", [row(0, prompt=HOSTILE, reasons=[HOSTILE], decision="rejected")])
    frame = Frame.of(DatasetColumns(open_dataset(folder)), lambda *_: None)
    html = frame.show()._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt; evil") == 2
    assert "\u202e" not in html
    assert "not made" in html


def test_a_saved_selection_is_a_dataset_with_the_same_pictures(opened, tmp_path):
    frame = opened.frame.where("decision = kept", "split = train")
    assert len(frame) > 1
    out = frame.sorted_by("similarity_min").save(str(tmp_path / "mine"), shards=True)
    saved = open_dataset(out)
    table = saved.table().to_pandas()
    own = opened.manifest.set_index("sample_id").loc[table.sample_id]
    assert set(table.sample_id) == set(frame.ids)
    assert table["index"].is_monotonic_increasing, "in the order of the plan"
    held = table.set_index("sample_id").shard.notna()
    assert held.any()
    assert (held == own.shard.notna()).all(), "a planted fault is in no shard of the run, and in none of these"
    assert (table.set_index("sample_id").content == own.content)[held].all(), "the same files"
    for column in ("similarity_min", "decision", "prompt", "seed"):
        assert table[column].tolist() == own[column].tolist()
    samples = list(read_samples(f"{out}/train-*.tar"))
    assert [sample.sample_id for sample in samples] == table[table.shard.notna()].sample_id.tolist()
    stated = json.loads(Path(out, "run.json").read_text())
    assert stated["selection"] == {"conditions": ["decision = kept", "split = train"], "samples": len(frame)}
    assert set(stated["shards"]) == set(table.shard.dropna())
    assert diff(open_dataset(opened.run.config.run_url), saved)["dropped"]["count"] == 12 - len(frame)


def test_planted_faults_are_chosen_for_the_manifest_but_for_no_shard(opened, tmp_path):
    run, faults = opened.run, opened.manifest.set_index("sample_id").planted_fault
    faulty = set(faults.index[faults != "none"])
    assert len(faulty) == 2, "both in the train split"
    out = opened.frame.save(str(tmp_path / "all"), shards=True)
    table = pq.read_table(f"{out}/manifest.parquet").to_pandas().set_index("sample_id")
    assert set(table.index[table.shard.isna()]) == faulty
    held = {sample.sample_id for path in Path(out).glob("*.tar") for sample in read_shard(str(path))}
    assert held == set(faults.index) - faulty
    with pytest.raises(UserError, match=r"none of the 2 chosen samples may be in a shard.*planted fault"):
        opened.frame.where("planted_fault != none").save(str(tmp_path / "faulty"), shards=True)
    assert not (tmp_path / "faulty").exists()

    unfiltered = run.config.model_copy(update={"shards": ShardsConfig(samples_per_shard=4, unfiltered=True)})
    frame = Frame.of(RunColumns(Run.of(unfiltered)), lambda *_: None)
    out = frame.save(str(tmp_path / "unfiltered"), shards=True)
    assert pq.read_table(f"{out}/manifest.parquet")["shard"].null_count == 0


def test_the_same_choice_gives_the_same_bytes(opened, tmp_path):
    for name in ("a", "b"):
        opened.frame.where("decision = kept").save(str(tmp_path / name), shards=True)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second


def test_a_manifest_alone_names_no_shard(opened, tmp_path):
    out = opened.frame.save(str(tmp_path / "all"))
    assert sorted(p.name for p in Path(out).iterdir()) == ["manifest.parquet", "run.json"]
    table = pq.read_table(f"{out}/manifest.parquet")
    assert table["shard"].null_count == len(table) == 12


def test_a_rejected_sample_can_be_saved_but_not_one_without_pictures(tmp_path):
    from troubled.runs import config

    from pipeline.curate import curate

    curate(config(tmp_path, trouble={"nan": [3]}))
    frame = open_run(str(tmp_path / "stubs")).frame
    with pytest.raises(UserError, match=r"1 of the 12 chosen samples have no pictures.*decision != error"):
        frame.save(str(tmp_path / "out"), shards=True)
    assert not (tmp_path / "out").exists()
    frame.where("decision != error").save(str(tmp_path / "out"), shards=True)
    held = [s.sample_id for path in sorted((tmp_path / "out").glob("*.tar")) for s in read_shard(str(path))]
    assert sorted(held) == sorted(frame.where("decision != error").ids)


def test_what_cannot_be_saved_is_one_line(opened, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    for frame, out, line in [
        (opened.frame, "there", "is there already; give another folder"),
        (opened.frame.where("index > 99"), "none", "no sample was chosen"),
    ]:
        with pytest.raises(UserError, match=line):
            frame.save(str(tmp_path / out))
    with pytest.raises(UserError, match="give a folder of this machine"):
        opened.frame.save("s3://bucket/x")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_the_command_saves_a_selection(opened, tmp_path):
    url = opened.run.config.run_url
    out = tmp_path / "mine"
    done = run_here(cli.main, "instructar", "select", url, "--where", "decision = kept", "--out", str(out))
    assert done.returncode == 0, done.stderr
    kept = (opened.manifest.decision == "kept").sum()
    assert done.stdout.strip() == f"{out}: {kept} of 12 samples"
    again = run_here(
        cli.main, "instructar", "select", str(out), "--where", "split = tset", "--out", str(tmp_path / "n")
    )
    assert again.returncode == 2
    assert "no sample was chosen" in again.stderr
