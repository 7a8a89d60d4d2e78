"""What the review page's server answers: queues, stories, pictures, and what it refuses."""

import base64
import io
import uuid

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from small.curation import made, small_config
from troubled.runs import PLANNED, config, stopped_before

from data_schemas.serving import Guarded
from data_schemas.tables import STATUS_COLUMNS
from pipeline.curate import curate
from pipeline.dataset.curated import open_run
from pipeline.pages.explore import explore_app
from pipeline.pages.explorer import Explorer
from pipeline.pages.review import review_app
from pipeline.pages.samples import Samples
from pipeline.run import Run


def client_of(run, reviewer="ada", blind=False):
    app = Guarded(review_app(Samples(run), reviewer, blind), "127.0.0.1")
    return TestClient(app, base_url="http://127.0.0.1:1", raise_server_exceptions=False)


@pytest.fixture
def client(copied):
    return client_of(Run.of(small_config(copied)))


def say(client, sample_id, action, value, reason=None, **more):
    line = {"id": str(uuid.uuid4()), "sample_id": sample_id, "action": action, "value": value, "reason": reason, **more}
    return client.post("/api/say", json=line)


def ids(client, name):
    return client.get("/api/queue", params={"name": name}).json()["ids"]


def png(pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_queues_have_the_samples_that_they_promise(client, small_run):
    manifest = open_run(small_run[0].run.config.run_url).manifest.set_index("sample_id")
    assert sorted(ids(client, "all")) == sorted(manifest.index)
    about = client.get("/api/review").json()
    reasons = {name.removeprefix("reason:") for name in about["queues"] if name.startswith("reason:")}
    assert reasons == set(manifest.reasons.explode().dropna())
    for reason in reasons:
        assert set(ids(client, f"reason:{reason}")) == {i for i, own in manifest.reasons.items() if reason in own}
    audit = ids(client, "audit")
    fewer = min((manifest.decision == d).sum() for d in ("kept", "rejected"))
    assert [set(manifest.decision[audit[n : n + 2]]) for n in range(0, 2 * fewer, 2)] == [{"kept", "rejected"}] * fewer
    nearest = ids(client, "nearest")
    rules = {i: client.get(f"/api/story/{i}").json()["rules"] for i in (nearest[0], nearest[-1])}

    def near(sample_id):
        return min(abs(r["score"] - r["threshold"]) / manifest[r["column"]].std(ddof=0) for r in rules[sample_id]
                   if r["score"] is not None and manifest[r["column"]].std(ddof=0) > 0)  # fmt: skip

    assert near(nearest[0]) < near(nearest[-1])


def test_what_is_said_moves_on_and_can_be_taken_back(client):
    first, second, *_ = ids(client, "all")
    assert say(client, first, "verdict", "rejected", "a <b>thumb</b> too many").status_code == 200
    say(client, second, "flag", True)
    found = client.get("/api/queue", params={"name": "all"}).json()
    assert (found["left"], found["ids"][found["first"]]) == (found["total"] - 1, second)
    assert ids(client, "flagged") == [second]
    opinion = client.get(f"/api/opinions/{first}").json()
    assert opinion["mine"]["verdict"]["reason"] == "a <b>thumb</b> too many"
    say(client, first, "undo", opinion["last"]["id"])
    assert client.get(f"/api/opinions/{first}").json()["mine"] == {}


def test_two_reviewers_see_each_other_but_not_when_blind(client, copied):
    run = Run.of(small_config(copied))
    bob, blind = client_of(run, "bob"), client_of(run, "eve", blind=True)
    first, *_ = ids(client, "all")
    say(client, first, "verdict", "kept")
    say(bob, first, "verdict", "rejected", "no")
    assert ids(bob, "disagreement") == [first]
    assert bob.get(f"/api/opinions/{first}").json()["others"]["ada"]["verdict"]["value"] == "kept"
    assert blind.get(f"/api/opinions/{first}").json() == {"mine": {}, "others": {}, "last": None}


def test_blind_hides_all_that_filters_decided_and_what_was_planted(copied):
    run = Run.of(small_config(copied))
    client = client_of(run, blind=True)
    for sample_id in ids(client, "all"):
        story = client.get(f"/api/story/{sample_id}").json()
        assert story["decide"] is None
        assert story["rules"] == []
        told = {stage["name"]: stage["row"].keys() for stage in story["stages"]}
        shown = {"sample_id", *(column.name for column in STATUS_COLUMNS), "model"}
        assert told == {"synthesis": shown, "matting": shown}
        assert {"prompt", "box_0", "reference_1_name"} <= story["plan"].keys()
        assert not {"index", "seed", "other_reference_id"} & story["plan"].keys(), "every fifth of a plan has a fault"
    assert client.get("/api/review").json()["queues"] == ["audit", "flagged", "all"]
    assert "not while reviewing blind" in client.get("/api/queue", params={"name": "errors"}).json()["error"]


def test_the_order_of_a_blind_queue_tells_neither_decision_nor_place_in_the_plan(copied):
    run = Run.of(small_config(copied))
    blind, open_eyed = client_of(run, blind=True), client_of(run)
    audit, whole = ids(blind, "audit"), ids(blind, "all")
    assert sorted(audit) == sorted(ids(open_eyed, "audit"))
    assert audit != ids(open_eyed, "audit"), "where kept and rejected ones come in turns"
    assert sorted(whole) == sorted(ids(open_eyed, "all"))
    assert whole != ids(open_eyed, "all"), "which has the order of the plan"
    assert [i for i in whole if i in audit] == audit, "the same whatever was decided"
    for sample_id in whole:
        say(blind, sample_id, "flag", True)
    assert ids(blind, "flagged") == whole


@pytest.mark.parametrize(
    ("path", "status"),
    [("/api/story/none", 404), ("/picture/none/target", 404), ("/picture/{id}/../../settings.json", 404),
     ("/picture/{id}/%2e%2e%2fsettings", 404), ("/files/..%2f..%2fcli.py", 404), ("/files/review.py", 404),
     ("/matte/{id}?path=../../../etc/hostname", 404), ("/matte/{id}?path=settings.json", 404),
     ("/api/queue?name=none", 400), ("/picture/{id}/target?side=x", 422), ("/api/opinions/none", 404)],
)  # fmt: skip
def test_nothing_but_the_runs_samples_can_be_read(client, path, status):
    answer = client.get(path.format(id=ids(client, "all")[0]))
    assert answer.status_code == status
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("action", "value", "said"),
    [("verdict", "maybe", "is no verdict"), ("alpha_threshold", 2, "is no alpha_threshold"), ("paint", 1, "action"),
     ("undo", "0" * 32, "has said nothing with the id"), ("matte", "/etc/hostname", "no PNG"),
     ("matte", "data:image/png;base64,AAAA", "matte"), ("matte", png(np.zeros((8, 8), np.uint8)), "8 x 8 pixels, the")],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line_and_is_not_stored(client, copied, action, value, said):
    first = ids(client, "all")[0]
    answer = say(client, first, action, value)
    assert answer.status_code in (400, 422)
    assert said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert client.get(f"/api/opinions/{first}").json()["mine"] == {}
    assert say(client, "none", "flag", True).status_code == 404


def test_a_run_that_is_half_made_shows_what_is_there(copied):
    run = Run.of(small_config(copied))
    *_, last = run.parts()
    for stage in ("matting", "decide"):
        store = run.store(stage)
        store.fs.rm(store.path(last, "parquet"))
    client = client_of(run)
    assert client.get("/api/review").json()["missing"] == ["matting"]
    planned = list(Samples(run).part_of())
    assert len(ids(client, "all")) == 8, "of those that are decided"
    story = client.get(f"/api/story/{planned[-1]}").json()
    assert {s["name"]: s["made"] for s in story["stages"]}["matting"] is False
    assert story["pictures"] == {"reference_0": True, "reference_1": True, "target": True, "foreground": False,
                                 "background": False, "alpha": False}  # fmt: skip
    assert client.get(f"/picture/{planned[-1]}/alpha").status_code == 404


def test_a_run_that_is_being_grown_shows_what_stages_have_of_its_new_samples(tmp_path):
    scored = {"filters": [{"use": "troubled.stages:Scored", "config": {}}]}
    curate(config(tmp_path, samples=10, **scored))
    run = stopped_before("scored", config(tmp_path, **scored))
    explorer = Explorer(run.config.run_url)
    planned = list(explorer.samples.part_of())
    assert len(planned) == PLANNED
    for client in (client_of(run), client_of(run, blind=True), TestClient(explore_app(explorer))):
        for place, sample_id in enumerate(planned):
            story = client.get(f"/api/story/{sample_id}").json()
            made = {stage["name"]: stage["made"] for stage in story["stages"]}
            assert made["matting"] is True
            assert made.get("scored", place < 10) is (place < 10), "the last part has the old samples yet"
            assert client.get(f"/picture/{sample_id}/target").status_code == 200
            assert client.get(f"/api/row/{sample_id}").status_code in (200, 404)


def test_pictures_come_as_they_are_stored_or_small(client, small_run):
    first = ids(client, "all")[0]
    whole = client.get(f"/picture/{first}/target")
    expected = open_run(small_run[0].run.config.run_url).picture(first)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(whole.content))), np.asarray(expected))
    small = client.get(f"/picture/{first}/reference_0?side=64")
    picture = Image.open(io.BytesIO(small.content))
    assert (small.headers["content-type"], max(picture.size), picture.mode) == ("image/png", 64, "RGBA")
    tag = {"if-none-match": whole.headers["etag"]}
    assert client.get(f"/picture/{first}/target", headers=tag).status_code == 304


@pytest.mark.slow
def test_a_painted_matte_and_a_moved_threshold_remake_their_parts_and_the_shards_follow(client, copied, small_run):
    before = open_run(str(copied / "small"))
    kept = before.manifest[(before.manifest.decision == "kept") & (before.manifest.planted_fault == "none")].sample_id
    parts = Samples(before.run).part_of()
    painted, moved = kept.iloc[0], next(i for i in kept if parts[i] != parts[kept.iloc[0]])
    matte = np.zeros((256, 256), np.uint8)
    matte[40:220, 20:240] = 255
    assert say(client, painted, "matte", png(matte)).status_code == 200
    assert say(client, moved, "alpha_threshold", 0.9).status_code == 200
    path = client.get(f"/api/opinions/{painted}").json()["mine"]["matte"]["value"]
    shown = client.get(f"/matte/{painted}", params={"path": path})
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.content))), matte)
    for sample_id in (painted, moved):
        say(client, sample_id, "verdict", "kept")

    result = curate(small_config(copied))
    touched = {parts[painted], parts[moved]}
    for stage in ("references", "plan", "synthesis"):
        assert stage not in made(result)
    for stage in ("matting", "identity", "quality"):
        assert {p.part for p in result.summaries[stage] if not p.cached} == touched
    after = open_run(str(copied / "small"))
    assert np.array_equal(np.asarray(after.picture(painted, "alpha")), matte)
    target = np.asarray(after.picture(painted, "target"))
    background = np.asarray(after.picture(painted, "background"))
    assert not background[40:220, 20:240].any()
    assert np.array_equal(background[:30], target[:30])
    from tokenar import read_samples

    samples = {s.sample_id: s for split in ("train", "test") for s in read_samples(after.shards(split))}
    assert np.array_equal(np.asarray(samples[painted].background.convert("RGB")), background)
    assert not made(curate(small_config(copied))), "what was taken over is not made again"
