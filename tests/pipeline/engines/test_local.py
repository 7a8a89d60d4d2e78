"""Worker processes: the same bytes as threads, a device each, and no sample lost to a neighbour that kills or hangs."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from paths import ROOT, SUPPORT
from troubled.runs import PLANNED, config, contents, outcome

import pipeline.run
from data_schemas.errors import RunFailed, UserError
from pipeline.curate import curate
from pipeline.engines.local import Processes
from pipeline.engines.process import WorkerProcess, _Order
from pipeline.jobs import PartJob
from pipeline.run import Run


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A run of stubs whose pool and plan are there."""
    root = tmp_path_factory.mktemp("stubs")
    curate(config(root))
    return root


@pytest.mark.slow
def test_processes_make_the_bytes_that_threads_make(planned, tmp_path):
    result = curate(config(tmp_path, "local"))
    assert result.summaries["synthesis"], "something was made"
    assert contents(tmp_path) == contents(planned)
    with mock.patch.object(WorkerProcess, "_start", side_effect=AssertionError("what is there needs no process")):
        curate(config(tmp_path, "local"))


@pytest.mark.slow
def test_a_sample_that_kills_and_one_that_hangs_are_error_rows_and_all_others_are_made(planned, tmp_path):
    trouble = {"crash": [1, 6], "hang": [9], "folder": str(tmp_path), "batch_size": 3}
    result = curate(config(planned, "local", trouble=trouble, time_limit=1.0))
    expected = dict.fromkeys(range(PLANNED), ("ok", None))
    expected |= {1: ("error", "crashed"), 6: ("error", "crashed"), 9: ("error", "timed_out")}
    assert outcome(result) == expected
    (row,) = [r for r in result.run.store("trouble").read("part-00000").rows() if r["status"] == "error"]
    assert "SIGSEGV" in row["error_message"]
    again = curate(config(planned, "local", trouble=trouble, time_limit=1.0))
    assert all(summary.cached for summary in again.summaries["trouble"]), "they are not tried in every run"


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_sample_that_killed_once_is_made_when_it_is_tried_alone(planned, tmp_path, times):
    """Twice is what becomes of it when something else kills the process in which it is tried."""
    trouble = {"crash_once": [5] * times, "folder": str(tmp_path), "batch_size": 4, "hang": [100 + times]}  # made anew
    assert set(outcome(curate(config(planned, "local", trouble=trouble))).values()) == {("ok", None)}


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing(planned, tmp_path):
    """Whatever kills it, as the system does when memory is short."""
    done = threading.Event()

    def kill_some() -> None:
        killed = 0
        while not done.is_set() and killed < 4:
            children = [int(c) for c in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]
            for child in children:
                try:
                    command = Path(f"/proc/{child}/cmdline").read_bytes()
                except FileNotFoundError:  # it has just ended
                    continue
                if b"pipeline.engines.serve" in command and (tmp_path / "made").exists():
                    os.kill(child, signal.SIGKILL)
                    killed += 1
                    time.sleep(3)
            time.sleep(0.05)

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        result = curate(config(planned, "local", trouble={"folder": str(tmp_path), "rest": 0.3}, seed=0))
    finally:
        done.set()
        killer.join()
    assert set(outcome(result).values()) == {("ok", None)}


@pytest.mark.slow
def test_each_device_has_a_process_of_its_own_which_loads_the_model_once(planned, tmp_path):
    trouble = {"folder": str(tmp_path), "rest": 0.5}
    curate(config(planned, "local", trouble=trouble, devices=["4", "7"], workers=4, part_size=1))
    assert Counter((tmp_path / "loads").read_text().split()) == {"4": 1, "7": 1}
    used = Counter(line.split()[1] for line in (tmp_path / "made").read_text().splitlines())
    assert used.total() == PLANNED
    assert min(used["4"], used["7"]) >= PLANNED // 4, "parts are spread over both"


@pytest.mark.slow
def test_a_process_that_dies_before_its_first_sample_ends_the_run_with_one_line(planned):
    with pytest.raises(UserError, match=r"trouble: .*SIGSEGV, twice, before the first sample .*memory"):
        curate(config(planned, "local", trouble={"crash_at_setup": True}))


def test_a_part_without_a_sample_at_work_is_not_blamed_for_its_neighbours_death(planned):
    """It reads or stores its samples while that of another part kills the process that both share."""
    job = PartJob(Run.of(config(planned)), "trouble", "part-00000", "", "")
    for neighbour, guilty in (((), True), (("s1",), False)):
        worker = WorkerProcess({}, 2)
        orders = _Order(job), _Order(job, at_work=neighbour)
        worker._orders = dict(enumerate(orders))
        worker._bury(subprocess.Popen(["sh", "-c", "kill -SEGV $$"]), mock.Mock(), None)
        assert [order.result.exception().guilty for order in orders] == [guilty, True]


def test_two_threads_that_ask_first_get_the_same_stages(planned, monkeypatch):
    """A worker process has as many threads as workers for its GPU, and each stage's model once."""
    real = pipeline.run.build_stages
    monkeypatch.setattr(pipeline.run, "build_stages", lambda config: (time.sleep(0.2), real(config))[1])
    run = Run.of(config(planned, seed=77))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda data: pickle.loads(data).stages(), [pickle.dumps(run)] * 2)
    assert all(one is other for one, other in zip(first, second, strict=True))


@pytest.mark.slow
def test_a_mistake_in_the_first_part_does_not_wait_for_all_others(planned, tmp_path, monkeypatch):
    trouble = {"folder": str(tmp_path), "rest": 0.5, "hang": [99]}  # not what another test has made
    config_ = config(planned, "local", trouble=trouble, part_size=1)
    real = Processes._make

    def refuse_the_first(self, job):
        if job.stage == "trouble" and job.part == "part-00000":
            raise UserError("no")
        return real(self, job)

    monkeypatch.setattr(Processes, "_make", refuse_the_first)
    with pytest.raises(UserError, match="no"):
        curate(config_)
    begun = (tmp_path / "made").read_text().splitlines() if (tmp_path / "made").exists() else []
    assert len(begun) <= 3, "what was at work was finished, no more was begun"


@pytest.mark.slow
def test_a_run_in_which_too_much_fails_stops_before_later_stages(planned):
    settings = config(planned, "threads", filters=[{"use": "troubled.stages:Fails"}])
    with pytest.raises(RunFailed, match=r"stage fails: 8 of 12 samples failed, .*max_error_share is 0.5; mend"):
        curate(settings)
    curate(settings.model_copy(update={"max_error_share": 0.8}))


@pytest.mark.slow
def test_ctrl_c_finishes_what_is_at_work_and_the_same_command_goes_on(tmp_path):
    settings = config(tmp_path, "local", trouble={"rest": 1.0, "folder": str(tmp_path)}, part_size=1)
    file = tmp_path / "settings.json"
    file.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "pipeline.cli", "curate", "--config", str(file)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "made").exists():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process gets it
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopping after the parts at work" in told
    assert "Traceback" not in told
    begun = (tmp_path / "made").read_text().splitlines()
    assert len(begun) < PLANNED
    assert set(outcome(curate(settings)).values()) == {("ok", None)}
    assert len((tmp_path / "made").read_text().splitlines()) == PLANNED, "no part is made twice"
