"""A run as columns: whole, half made, damaged, at work."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from troubled.runs import PLANNED, config

from pipeline.curate import curate
from pipeline.dataset.frames import run_columns
from pipeline.dataset.frames.decisions import decided, stored
from pipeline.dataset.frames.run_columns import RunColumns
from pipeline.review.log import ReviewLog
from pipeline.run import Run

SCORED = {"filters": [{"use": "troubled.stages:Scored", "config": {}}]}
LOOSE = {"decide": {"thresholds": {f"score_{k}_low": 0.0 if k else 0.4 for k in range(8)}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return curate(config(root, **SCORED, **LOOSE)), root


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(made[1], tmp_path, dirs_exist_ok=True, symlinks=True)
    return Run.of(config(tmp_path, **SCORED, **LOOSE))


def files(run, stage):
    return [f"{run.store(stage).root}/{part}.parquet" for part in run.parts()]


def test_all_columns_are_those_of_the_manifest(run, made):
    columns = RunColumns(run)
    manifest = pq.read_table(made[0].manifest_url)
    assert columns.missing() == {}
    for name in manifest.column_names:
        if name != "content":  # which only the manifest has
            assert columns.column(name).to_pylist() == manifest[name].to_pylist(), name
    assert set(columns.column("scored.status").to_pylist()) == {"ok"}
    assert decided(columns).decisions.tolist() == stored(columns).tolist() == manifest["decision"].to_pylist()
    assert 0 < manifest["decision"].to_pylist().count("kept") < PLANNED


def test_what_is_not_made_is_null_and_told(run, tmp_path):
    scored = files(run, "scored")
    held = tmp_path / "held.parquet"
    shutil.move(scored[1], held)
    shutil.rmtree(run.store("decide").root)
    shutil.rmtree(f"{run.config.run_url}/datasets")
    columns = RunColumns(run)
    assert columns.missing() == {"scored": 1, "decide": 3}
    values = columns.column("score_0").to_pylist()
    assert [value is None for value in values] == [False] * 4 + [True] * 4 + [False] * 4
    assert set(columns.column("decision").to_pylist()) == set(columns.column("shard").to_pylist()) == {None}
    assert [decision is None for decision in decided(columns).decisions] == [value is None for value in values]

    shutil.move(held, scored[1])
    now = columns.refreshed()
    assert now.column("score_0").null_count == 0
    assert columns.column("score_0").null_count == 4, "who looked before goes on with what was there"


def test_a_refresh_reads_nothing_but_what_is_new(run, monkeypatch):
    columns = RunColumns(run)
    columns.load(["score_0", "prompt"])
    assert columns.refreshed() is columns
    read = []
    real = run_columns._columns_of
    monkeypatch.setattr(run_columns, "_columns_of", lambda *given: read.append(given[1]) or real(*given))
    path = files(run, "scored")[2]
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("score_0"), "score_0", [np.full(4, 0.125)]), path)
    now = columns.refreshed()
    assert now.column("score_0").to_pylist()[8:] == [0.125] * 4
    assert now.column("score_0").to_pylist()[:8] == columns.column("score_0").to_pylist()[:8]
    assert now.column("prompt").equals(columns.column("prompt"))
    assert read == ["part-00002"]

    read.clear()
    said = {"id": "0" * 8, "sample_id": now.ids[0].as_py(), "action": "verdict", "value": "kept", "reviewer": "ada"}
    ReviewLog(run.config.run_url).append(said)
    after = now.refreshed()
    assert after is not now
    assert after.standing().verdicts.tolist() == ["kept", *[None] * (PLANNED - 1)]
    assert after.column("score_0").equals(now.column("score_0"))
    assert set(read) <= {f"part-0000{k}" for k in range(3)}, read
    read.clear()
    assert after.refreshed() is after
    after.load(["score_0", "prompt"])
    assert read == [], "a verdict changes no part"


def test_a_part_of_an_earlier_plan_is_matched_by_sample(run):
    path = files(run, "scored")[0]
    table = pq.read_table(path)
    whole = RunColumns(run).column("score_1").to_pylist()
    pq.write_table(table.take([2, 0, 3]), path)  # another order, and one is missing
    values = RunColumns(run).column("score_1").to_pylist()
    assert values == [whole[0], None, *whole[2:]]


def test_damaged_parts_are_like_missing_ones(run):
    path = files(run, "scored")[0]
    with open(path, "r+b") as file:
        file.truncate(100)
    with open(files(run, "plan")[2], "wb") as file:
        file.write(b"not a table")
    columns = RunColumns(run)
    assert len(columns) == 8
    assert columns.column("score_0").null_count == 4
    assert len(columns.column("decision")) == len(decided(columns).decisions) == 8


@pytest.mark.slow
def test_a_bucket_tells_the_same(made, bucket):
    settings = config(bucket, **SCORED, **LOOSE)
    curate(settings)
    ours, theirs = RunColumns(made[0].run), RunColumns(Run.of(settings))
    assert theirs.missing() == {}
    for name in ("prompt", "score_3", "decision", "shard"):
        assert theirs.column(name).to_pylist() == ours.column(name).to_pylist()
    assert theirs.refreshed() is theirs
