"""How far a run is, before, while and after it is made."""

import json
import re
import threading
import time
from pathlib import Path

import pytest
from commands import run_here
from troubled.runs import PLANNED, config

from data_schemas.errors import UserError
from pipeline import cli
from pipeline.curate import curate
from pipeline.report.results import curate_dataset


def ask(root, *options):
    return run_here(cli.main, "instructar", "status", root / "stubs", *options)


def test_a_whole_run_tells_its_parts_errors_and_hours(tmp_path):
    curate_dataset(config(tmp_path, filters=[{"use": "troubled.stages:Fails"}], max_error_share=0.8))
    found = json.loads(ask(tmp_path, "--json").stdout)
    assert found["stages"]["fails"] | {"worker_hours": 0} == {
        "parts": 3, "done": 3, "left": 0, "with_errors": 3, "samples": PLANNED, "errors": {"ValueError": 8},
        "gpu_hours": 0, "worker_hours": 0,
    }  # fmt: skip
    assert (found["working"], found["kept"]) == (None, 4)
    told = ask(tmp_path).stdout
    assert "ValueError 8" in told
    assert re.search(r"whole; kept 4, for a thousand \d\.\d+ worker-hours without a GPU$", told.strip())


def test_damaged_parts_are_left_to_be_made_and_damaged_notes_are_no_hours(tmp_path):
    run = curate(config(tmp_path, filters=[{"use": "troubled.stages:Scored", "config": {}}])).run
    whole = json.loads(ask(tmp_path, "--json").stdout)["stages"]

    def damage(stage, part, suffix, data=None):
        path = Path(run.store(stage).path(part, suffix))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if data is None else data)

    damage("scored", "part-00000", "parquet")
    damage("decide", "part-00002", "parquet", b"no table")
    for part, notes in zip(run.parts(), (b"{", b"\xff", b'{"gpu": "much", "samples": [1]}'), strict=True):
        damage("synthesis", part, "notes.json", notes)
    answer = ask(tmp_path, "--json")
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    stages = found["stages"]
    assert [(stages[s]["done"], stages[s]["left"], stages[s]["samples"]) for s in ("matting", "scored", "decide")] == [
        (3, 0, 12), (2, 1, 8), (2, 1, 8),
    ]  # fmt: skip
    assert stages["synthesis"] == whole["synthesis"] | {"worker_hours": 0}
    assert stages["matting"] == whole["matting"]
    assert found["working"]["stage"] == "scored"
    assert found["kept"] is None
    assert "scored is not whole" in ask(tmp_path).stdout


@pytest.mark.slow
@pytest.mark.long
def test_a_run_at_work_tells_how_long_it_will_take(tmp_path):
    settings = config(tmp_path, trouble={"rest": 0.5}, part_size=1, samples=40)
    making = threading.Thread(target=curate, args=[settings])
    making.start()
    found, until = None, time.monotonic() + 30
    while time.monotonic() < until and not (found and found["stage"] == "trouble" and found["samples_per_second"]):
        answer = ask(tmp_path, "--json")
        found = json.loads(answer.stdout)["working"] if answer.returncode == 0 else None
    making.join()
    assert found["stage"] == "trouble"
    assert 1 < found["samples_per_second"] < 8, "two workers, half a second a sample"
    assert 0 < found["seconds_left"] < 40


def test_a_run_that_stopped_says_where(tmp_path):
    with pytest.raises(UserError):
        curate(config(tmp_path, filters=[{"use": "troubled.stages:Fails"}]))
    assert "decide is not whole" in ask(tmp_path).stdout
