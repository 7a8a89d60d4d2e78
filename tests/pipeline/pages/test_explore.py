"""What the explorer's page asks for over HTTP: samples, comparisons, stories, selections; and what it refuses."""

import datetime
import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from commands import run_here
from fastapi.testclient import TestClient
from small.datasets import row, write_dataset
from troubled.runs import PLANNED, config

from data_schemas.errors import UserError
from data_schemas.serving import Guarded
from data_schemas.tables import REVIEW
from pipeline import cli
from pipeline.curate import curate
from pipeline.pages.explore import explore_app
from pipeline.pages.explorer import Explorer
from pipeline.review.log import ReviewLog

HOSTILE = "</script><b>\u202eevil\x07"
SCORED = {"filters": [{"use": "troubled.stages:Scored", "config": {}}]}


def thresholds(value: float) -> dict:
    return {"decide": {"thresholds": {f"score_{k}_low": 0.0 if k else value for k in range(8)}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a run, and the same run under a stricter threshold."""
    folder = tmp_path_factory.mktemp("runs")
    curate(config(folder, **SCORED, **thresholds(0.3)))
    shutil.copytree(folder / "stubs", folder / "strict", symlinks=True)
    curate(config(folder, **SCORED, **thresholds(0.7), name="strict"))
    return folder


def client_of(url, against=None):
    app = explore_app(Explorer(str(url), None if against is None else str(against)))
    return TestClient(Guarded(app, "127.0.0.1"), base_url="http://127.0.0.1:7000")


@pytest.fixture
def client(root):
    with client_of(root / "stubs", root / "strict") as client:
        yield client


def manifest(root, name):
    return pd.read_parquet(root / name / "dataset/manifest.parquet").set_index("sample_id")


def test_samples_are_filtered_sorted_and_counted(client, root):
    told = manifest(root, "stubs")
    wanted = told[told.score_1 > 0.2].sort_values("score_0", ascending=False)
    query = {"where": "score_1 > 0.2", "sort": "score_0", "descending": "true"}
    found = client.get("/api/rows", params=query).json()
    assert [row["sample_id"] for row in found["rows"]] == list(wanted.index)
    assert [row["score_0"] for row in found["rows"]] == list(wanted.score_0)
    assert (found["found"], found["of"], found["pages"]) == (len(wanted), PLANNED, 1)
    assert found["decisions"]["kept"] == (wanted.decision == "kept").sum()
    assert found["reasons"] == wanted.reasons.explode().value_counts().to_dict()
    assert found["rows"][0]["made"] is True
    assert found["command"].startswith("instructar select ")
    assert "--where 'score_1 > 0.2'" in found["command"]


def test_pages_begin_where_the_last_ended(client, monkeypatch):
    monkeypatch.setattr("pipeline.pages.explorer.PAGE", 5)
    pages = [client.get("/api/rows", params={"page": page}).json() for page in (1, 2, 3, 99)]
    assert [len(page["rows"]) for page in pages] == [5, 5, 2, 2]
    assert [page["first"] for page in pages] == [0, 5, 10, 10]
    assert len({row["sample_id"] for page in pages for row in page["rows"]}) == PLANNED


def test_other_thresholds_are_compared_without_a_model_and_applied_by_the_command_that_is_shown(client, root, tmp_path):
    before, after = manifest(root, "stubs"), manifest(root, "strict")
    found = client.get("/api/compare", params={"set": "score_0_low=0.7"}).json()
    assert found["before"]["counts"]["kept"] == (before.decision == "kept").sum()
    assert found["after"]["counts"]["kept"] == (after.decision == "kept").sum()
    left = before.index[(before.decision == "kept") & (after.decision != "kept")]
    assert found["changes"] == {"enters": 0, "leaves": len(left), "otherwise": 0, "same": PLANNED - len(left)}
    assert found["transitions"] == [{"was": "kept", "is": "rejected", "count": len(left)}]
    line = next(line for line in found["after"]["funnel"] if line["step"] == "score_0_low")
    assert line["breaks"] == (before.score_0 < 0.7).sum()
    rows = client.get("/api/rows", params={"set": "score_0_low=0.7", "where": "change = leaves"}).json()
    assert {(row["sample_id"], row["before"], row["after"]) for row in rows["rows"]} == {
        (i, "kept", "rejected") for i in left
    }

    shutil.copytree(root / "stubs", tmp_path / "stubs", symlinks=True)
    words = found["command"].replace(str(root), str(tmp_path)).split()
    done = run_here(cli.main, *words)
    assert done.returncode == 0, done.stderr
    assert (manifest(tmp_path, "stubs").decision == after.decision).all()


def test_verdicts_count_from_the_next_look_on(root, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.pages.explorer.FRESH", 0.0)
    shutil.copytree(root / "stubs", tmp_path / "stubs", symlinks=True)
    kept = manifest(root, "stubs").query("decision == 'kept'").index
    assert len(kept) >= 2
    blank = dict.fromkeys(("alpha_threshold", "matte", "reason")) | {"verdict": "rejected", "reviewer": "eve"}
    row = {**blank, "sample_id": kept[0], "time": datetime.datetime.now(datetime.UTC)}
    with client_of(tmp_path / "stubs") as client:

        def left():
            return client.get("/api/compare", params={"set": "score_0_low=0.3"}).json()["before"]["counts"]["kept"]

        assert left() == len(kept)
        pq.write_table(REVIEW.table([row]), tmp_path / "stubs/review.parquet")
        assert left() == len(kept) - 1
        said = {"id": "0" * 8, "sample_id": kept[1], "action": "verdict", "value": "rejected", "reviewer": "ada"}
        ReviewLog(str(tmp_path / "stubs")).append(said)
        assert left() == len(kept) - 2
        found = client.get("/api/rows", params={"set": "score_0_low=0.3", "where": "before = kept"}).json()
        assert {sample["sample_id"] for sample in found["rows"]} == set(kept[2:])
        assert client.get("/api/about").json()["missing"] == {}


def test_two_runs_are_compared_by_sample(client, root):
    now, was = manifest(root, "stubs"), manifest(root, "strict")
    found = client.get("/api/compare", params={"against": "true"}).json()
    entered = now.index[(now.decision == "kept") & (was.decision != "kept")]
    assert found["changes"]["enters"] == len(entered) > 0
    assert found["before"]["thresholds"]["score_0_low"] == 0.7
    assert found["command"] is None
    rows = client.get("/api/rows", params={"against": "true", "where": "change = enters"}).json()
    assert {row["sample_id"] for row in rows["rows"]} == set(entered)


def test_samples_of_one_run_alone_are_told(root, tmp_path):
    rows = [row(k, sample_id=i) for k, i in enumerate([*manifest(root, "stubs").index[:3], "only-there"])]
    other = write_dataset(tmp_path / "other", rows)
    with client_of(root / "stubs", other) as client:
        found = client.get("/api/compare", params={"against": "true"}).json()
        assert found["alone"] == {"count": 1, "kept": 1, "examples": ["only-there"]}
        assert sum(line["count"] for line in found["transitions"] if line["was"] == "not planned") == PLANNED - 3
        new = client.get("/api/rows", params={"against": "true", "where": "before = not planned"}).json()
        assert new["found"] == PLANNED - 3


def test_a_selection_is_saved_beside_the_run_and_never_over_another(client, root):
    kept = manifest(root, "stubs").query("decision == 'kept'").index
    choice = {"name": "mine", "where": ["decision = kept"], "shards": True}
    done = client.post("/api/save", json=choice).json()
    assert done == {"folder": str(root / "stubs/selections/mine"), "samples": len(kept)}
    assert set(pd.read_parquet(f"{done['folder']}/manifest.parquet").sample_id) == set(kept)
    assert client.post("/api/save", json=choice).json()["error"].endswith("is there already; give another folder")
    compared = {"name": "left", "where": ["change = leaves"], "thresholds": ["score_0_low=0.7"]}
    folder = client.post("/api/save", json=compared).json()["folder"]
    selection = json.loads(Path(folder, "run.json").read_text())["selection"]
    assert selection["conditions"] == ["change = leaves", "decided with score_0_low=0.7"]
    assert "change" not in pd.read_parquet(f"{folder}/manifest.parquet").columns


@pytest.mark.parametrize("name", ["../out", "a/b", "/tmp/x", "", ".", "..", "a\0b", "x" * 200, ".hidden"])
def test_a_page_names_a_folder_and_no_path(client, root, name):
    answer = client.post("/api/save", json={"name": name})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("name of the selection: ")


@pytest.mark.parametrize(
    ("path", "query", "line"),
    [
        ("rows", {"where": "nonsense"}, "condition 'nonsense': write a column"),
        ("rows", {"where": "nowhere = 1"}, "column 'nowhere': no such column"),
        ("rows", {"where": ["index > 0"] * 21}, "21 conditions; a question may have 20"),
        ("rows", {"sort": "nowhere"}, "column 'nowhere': no such column"),
        ("rows", {"sort": "box_0"}, "which has no order"),
        ("rows", {"page": "x"}, "query.page: "),
        ("rows", {"page": "0"}, "query.page: "),
        ("rows", {"where": "change = leaves"}, "column 'change': no such column"),
        ("compare", {"set": "score_0_low=nan"}, "threshold 'score_0_low=nan': write a reason and a number"),
        ("compare", {"set": "score_0_low"}, "write a reason and a number"),
        ("compare", {"set": "score_9_low=1"}, "decide.thresholds.score_9_low: no such reason"),
        ("compare", {"set": "score_0_low=7"}, "decide.thresholds.score_0_low: 7.0 is outside"),
    ],
)
def test_a_bad_question_is_one_line(client, path, query, line):
    answer = client.get(f"/api/{path}", params=query)
    assert answer.status_code in (400, 422)
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_samples_and_files_that_are_not_there(client):
    for path in ("/api/story/none", "/api/row/none", "/picture/none/target", "/files/app.py", "/files/..%2fapp.py"):
        assert client.get(path).status_code == 404
    assert client.post("/api/save", json={"name": "x", "out": "/tmp"}).status_code == 422


def test_without_another_run_there_is_no_comparison_with_one(root):
    with client_of(root / "stubs") as client:
        answer = client.get("/api/compare", params={"against": "true"})
        assert answer.json()["error"] == "no other run was given; start the page with --against RUN"


def test_a_run_of_other_settings_shows_its_manifest_and_says_so(root, tmp_path):
    shutil.copytree(root / "stubs", tmp_path / "stubs", symlinks=True)
    for stage in ("plan", "decide"):
        shutil.rmtree(tmp_path / "stubs" / stage)
    with client_of(tmp_path / "stubs") as client:
        about = client.get("/api/about").json()
        assert "the manifest of the dataset, version 1.0.0" in about["note"]
        assert about["pictures"] is False
        found = client.get("/api/rows", params={"where": "decision = kept"}).json()
        assert found["found"] == (manifest(root, "stubs").decision == "kept").sum()
        sample = found["rows"][0]["sample_id"]
        assert client.get(f"/api/row/{sample}").json()["decision"] == "kept"
        assert client.get("/api/compare", params={"set": "score_0_low=0.7"}).json()["changes"]["leaves"] > 0
        assert "a run's parts" in client.post("/api/save", json={"name": "x", "shards": True}).json()["error"]


def test_settings_that_this_program_cannot_read_leave_the_dataset(root, tmp_path):
    shutil.copytree(root / "stubs", tmp_path / "stubs", symlinks=True)
    file = tmp_path / "stubs/settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_the_future": 1}))
    assert "version 1.0.0" in Explorer(str(tmp_path / "stubs")).about()["note"]
    shutil.rmtree(tmp_path / "stubs/datasets")
    with pytest.raises(UserError, match="of_the_future"):
        Explorer(str(tmp_path / "stubs"))
    with pytest.raises(UserError, match="no run was curated there"):
        Explorer(str(tmp_path / "nowhere"))


def test_a_half_made_run_shows_what_is_there(root, tmp_path):
    shutil.copytree(root / "stubs", tmp_path / "stubs", symlinks=True)
    shutil.rmtree(tmp_path / "stubs/decide")
    for path in (tmp_path / "stubs/scored").rglob("part-00001.parquet"):
        path.unlink()
    with client_of(tmp_path / "stubs") as client:
        assert client.get("/api/about").json()["missing"] == {"scored": 1, "decide": 3}
        assert client.get("/api/rows").json()["decisions"]["not decided"] == PLANNED
        assert client.get("/api/compare").json()["not_compared"] == 4
        answer = client.post("/api/save", json={"name": "x"}).json()
        assert f"{PLANNED} of the {PLANNED} chosen samples are not decided yet" in answer["error"]


def test_what_data_says_comes_without_marks(tmp_path):
    folder = write_dataset(tmp_path / "set", [row(0, prompt=HOSTILE, reasons=[HOSTILE], decision="rejected")])
    with client_of(folder) as client:
        found = client.get("/api/rows").json()
        assert found["rows"][0]["prompt"] == "</script><b> evil"
        assert list(found["reasons"]) == ["</script><b> evil"]
