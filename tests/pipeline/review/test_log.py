"""The review log loses nothing and counts nothing twice, and the review table follows from it."""

import datetime
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from data_schemas.errors import UserError
from data_schemas.tables import REVIEW
from pipeline.core.review import Reviews
from pipeline.review.log import ReviewLog
from pipeline.review.opinions import opinions, verdicts


def said(sample_id="s1", action="verdict", value="rejected", reviewer="ada", reason=None, **more):
    return {"id": str(uuid.uuid4()), "sample_id": sample_id, "action": action, "value": value, "reason": reason,
            "reviewer": reviewer, **more}  # fmt: skip


@pytest.fixture
def log(tmp_path):
    return ReviewLog(str(tmp_path / "run"))


def table(log):
    log.write_table()
    return Reviews(log.run_url).rows


def test_the_table_has_what_was_said_last(log):
    log.append(said("s1", "verdict", "rejected", reason="three <b>arms</b>\u202e"))
    log.append(said("s1", "alpha_threshold", 0.25))
    log.append(said("s2", "verdict", "kept"))
    log.append(said("s2", "verdict", "rejected", "bob", reason="blurred"))
    log.append(said("s3", "flag", True))
    rows = table(log)
    assert rows.keys() == {"s1", "s2"}
    assert (rows["s1"]["verdict"], rows["s1"]["alpha_threshold"], rows["s1"]["reason"]) == (
        "rejected", 0.25, "three <b>arms</b>")  # fmt: skip
    assert (rows["s2"]["verdict"], rows["s2"]["reviewer"], rows["s2"]["reason"]) == ("rejected", "bob", "blurred")
    log.append(said("s1", "alpha_threshold", None))
    assert table(log)["s1"]["alpha_threshold"] is None


def test_undo_takes_back_ones_own_line_and_nothing_else(log):
    first = log.append(said("s1", "verdict", "kept"))
    second = log.append(said("s1", "verdict", "rejected"))
    with pytest.raises(UserError, match="bob has said nothing"):
        log.append(said("s1", "undo", first.id, "bob"))
    log.append(said("s1", "undo", second.id))
    assert table(log)["s1"]["verdict"] == "kept"
    log.append(said("s1", "undo", first.id))
    assert table(log) == {}
    assert len(log.rows()) == 4, "nothing is removed from the log"


def test_what_is_sent_again_counts_once_whoever_stores_it(log):
    line = said()
    first = log.append(line)
    assert log.append(line) == first
    assert ReviewLog(log.run_url).append(line) == first
    assert len(ReviewLog(log.run_url).rows()) == 1


def test_two_servers_and_many_threads_lose_nothing(tmp_path):
    logs = [ReviewLog(str(tmp_path)) for _ in range(2)]
    lines = [said(f"s{n % 7}", "verdict", "kept", f"r{n % 2}") for n in range(60)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: logs[n % 2].append(lines[n]), range(60)))
    assert {row.id for row in logs[0].rows()} == {line["id"] for line in lines}
    assert logs[0].rows() == logs[1].rows()


def test_the_end_of_a_line_that_was_being_written_is_left_out(log, tmp_path):
    log.append(said("s1"))
    (path,) = (tmp_path / "run/review").iterdir()
    with open(path, "ab") as file:
        file.write(b'{"id": "0000')
    again = ReviewLog(log.run_url)
    assert [row.sample_id for row in again.rows()] == ["s1"]
    again.append(said("s2"))
    assert [row.sample_id for row in ReviewLog(log.run_url).rows()] == ["s1", "s2"]


def test_a_full_disk_spoils_no_later_line(log, monkeypatch):
    log.append(said("s1"))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.append(said("s2"))
    log.append(said("s3"))
    assert {"s1", "s3"} <= {row.sample_id for row in ReviewLog(log.run_url).rows()}


def test_a_damaged_line_is_named(log, tmp_path):
    log.append(said())
    (path,) = (tmp_path / "run/review").iterdir()
    path.write_text(path.read_text() + json.dumps({"id": "12345678"}) + "\n" + path.read_text())
    with pytest.raises(UserError, match=r"review/.*jsonl: line 2: sample_id"):
        ReviewLog(log.run_url).rows()


@pytest.mark.parametrize(
    ("action", "value"),
    [("verdict", "maybe"), ("alpha_threshold", 1.5), ("alpha_threshold", "x"), ("alpha_threshold", float("nan")),
     ("flag", None), ("matte", 3.0), ("undo", None), ("paint", "x")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_not_stored(log, action, value):
    with pytest.raises(UserError):
        log.append(said("s1", action, value))
    assert log.rows() == []


def test_a_table_written_by_hand_is_taken_into_the_log_once(log):
    blank = dict.fromkeys(("alpha_threshold", "matte", "verdict", "reason"))
    long_ago = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    rows = [{**blank, "sample_id": i, "verdict": "rejected", "reviewer": "eve", "time": long_ago} for i in ("s1", "s2")]
    os.makedirs(log.run_url)
    pq.write_table(REVIEW.table(rows), f"{log.run_url}/review.parquet")
    assert log.write_table() == 0, "without a log it stays as it is"
    log.append(said("s1", "verdict", "kept"))
    for _ in range(2):
        found = table(log)
        assert (found["s1"]["verdict"], found["s2"]["verdict"], found["s2"]["reviewer"]) == ("kept", "rejected", "eve")
        assert found["s2"]["time"] == long_ago
    assert len(log.rows()) == 3


def by_hand(log, **row):
    blank = dict.fromkeys(("alpha_threshold", "matte", "verdict", "reason"))
    long_ago = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    os.makedirs(log.run_url, exist_ok=True)
    rows = [{**blank, "sample_id": "s1", "reviewer": "eve", "time": long_ago, **row}]
    pq.write_table(REVIEW.table(rows), f"{log.run_url}/review.parquet")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_every_threshold_that_a_table_may_have_is_taken_into_the_log(log, value):
    log.append(said("s2"))
    by_hand(log, alpha_threshold=value)
    assert table(log)["s1"]["alpha_threshold"] == value
    assert log.append(said("s3", "alpha_threshold", value)).value == value
    assert table(ReviewLog(log.run_url))["s3"]["alpha_threshold"] == value


def test_a_row_by_hand_that_cannot_be_taken_is_named(log):
    log.append(said("s2"))
    by_hand(log, verdict="kept", reviewer="x" * 101)
    with pytest.raises(UserError, match=r"^\S*review\.parquet: sample s1: reviewer: .*; correct that row") as told:
        log.adopt()
    assert "\n" not in str(told.value)


def test_verdicts_are_there_before_the_table_is_made_and_gone_when_they_are_undone(log):
    blank = dict.fromkeys(("alpha_threshold", "matte", "verdict", "reason"))
    long_ago = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    os.makedirs(log.run_url)
    by_hand = [{**blank, "sample_id": "s1", "verdict": "rejected", "reviewer": "eve", "time": long_ago}]
    pq.write_table(REVIEW.table(by_hand), f"{log.run_url}/review.parquet")
    line = log.append(said("s2", "verdict", "kept"))
    assert log.verdicts() == {"s1": "rejected", "s2": "kept"}
    log.write_table()
    assert log.verdicts() == {"s1": "rejected", "s2": "kept"}
    log.append(said("s2", "undo", line.id))
    assert log.verdicts() == {"s1": "rejected"}


def test_the_log_of_a_run_in_a_bucket(bucket):
    log = ReviewLog(f"{bucket}/runs/a")
    assert log.rows() == []
    for n in range(3):
        log.append(said(f"s{n}"))
    assert [row.sample_id for row in ReviewLog(f"{bucket}/runs/a").rows()] == ["s0", "s1", "s2"]
    assert log.write_table() == 3


def test_verdicts_are_told_by_reviewer(log):
    log.append(said("s1", "verdict", "kept"))
    log.append(said("s1", "verdict", "rejected", "bob"))
    log.append(said("s2", "flag", True))
    assert verdicts(opinions(log.rows())) == {"ada": {"s1": True}, "bob": {"s1": False}}
