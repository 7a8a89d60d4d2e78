"""What a curation tells of each part and of its cost: a line of the log, the notes beside a part, metrics.json."""

import json
import logging
import os
import subprocess
import sys

import pytest
from commands import run_here
from troubled.runs import PLANNED, config

from pipeline import cli
from pipeline.core.progress import PARTS
from pipeline.core.sharing import SharedTime
from pipeline.core.stage import Stage
from pipeline.report.results import curate_dataset
from pipeline.report.status import status
from pipeline.run import Run


@pytest.fixture(autouse=True)
def quiet_again():
    yield
    for handler in list(PARTS.handlers):
        PARTS.removeHandler(handler)
    PARTS.setLevel(logging.NOTSET)
    PARTS.propagate = True


def curate_with_log(root, file, *options, engine="threads"):
    settings = root / "settings.yaml"
    settings.write_text(config(root, engine, trouble={"nan": [3], "rest": 0.01}).model_dump_json())
    return run_here(cli.main, "instructar", "curate", "--config", settings, "--log-file", file, *options)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["threads", "local", pytest.param("ray", marks=pytest.mark.long)])
def test_every_engine_tells_each_part_in_a_line(tmp_path, engine):
    file = tmp_path / "parts.jsonl"
    done = curate_with_log(tmp_path, file, engine=engine)
    assert done.returncode == 0, done.stderr
    assert '"part"' not in done.stderr, "the console has the progress instead"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    stages = {"references": 1, "plan": 3, "synthesis": 3, "matting": 3, "trouble": 3, "decide": 3}
    assert {stage: sum(line["stage"] == stage for line in lines) for stage in stages} == stages
    first = next(line for line in lines if (line["stage"], line["part"]) == ("trouble", "part-00000"))
    assert first["cached"] is False
    assert first["counts"] == {"ok": 3, "error": 1}
    assert first["seconds"] >= 0.04
    assert first["samples_per_second"] == pytest.approx(4 / first["seconds"], rel=0.01)
    assert first["gpu_seconds"] == 0


def test_a_second_curation_adds_lines_of_cached_parts(tmp_path):
    file = tmp_path / "parts.jsonl"
    curate_with_log(tmp_path, file)
    before = file.read_text().splitlines()
    quiet = run_here(cli.main, "instructar", "curate", "--config", tmp_path / "settings.yaml")
    assert quiet.returncode == 0
    assert file.read_text().splitlines()[: len(before)] == before
    curate_with_log(tmp_path, file)
    assert {json.loads(line)["cached"] for line in file.read_text().splitlines()[-6:]} == {True}


@pytest.mark.parametrize("kind", ["a folder", "no folder", "a pipe nobody reads"])
def test_a_log_file_that_cannot_be_is_one_line(tmp_path, kind):
    file = tmp_path / ("none/log" if kind == "no folder" else "log")
    if kind == "a folder":
        file.mkdir()
    elif kind == "a pipe nobody reads":
        os.mkfifo(file)
    done = curate_with_log(tmp_path, file)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --log-file {file}: cannot be written (")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "stubs").exists(), "nothing is begun"


def test_a_log_file_that_fails_later_is_one_line_and_the_run_goes_on(tmp_path):
    done = curate_with_log(tmp_path, "/dev/full")
    assert done.returncode == 0
    assert done.stderr.count("/dev/full") == 1
    assert "--log-file /dev/full: No space left on device; no more lines are written to it\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_prefect_has_the_lines_in_the_log_of_the_run(tmp_path):
    """In a process of its own, as Prefect's settings are read once."""
    code = f"""
import json, time
from prefect import flow, get_client
from prefect.testing.utilities import prefect_test_harness
from flows.engine import prefect_engine
from pipeline.curate import curate
from troubled.runs import config

@flow(name="watched")
def watched():
    curate(config({str(tmp_path)!r}), prefect_engine)

with prefect_test_harness():
    watched()
    until = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while time.monotonic() < until:
            lines = [log.message for log in client.read_logs() if log.name == "pipeline.parts"]
            if any('"stage": "decide", "part": "part-00002"' in line for line in lines):
                break
            time.sleep(0.5)
print(json.dumps(lines))
"""
    path = os.pathsep.join(["tests/support", os.environ.get("PYTHONPATH", "."), "."])
    environment = {**os.environ, "PYTHONPATH": path, "PREFECT_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line) for line in json.loads(done.stdout.splitlines()[-1])]
    assert sorted(line["part"] for line in told if line["stage"] == "matting") == [f"part-0000{k}" for k in range(3)]
    assert '"stage": "matting"' not in done.stderr, "the console has the progress instead"


def test_time_that_several_share_passes_once(monkeypatch):
    now = iter([0.0, 4.0, 10.0, 12.0, 20.0, 25.0])
    monkeypatch.setattr("pipeline.core.sharing.time.perf_counter", lambda: next(now))
    gpu = SharedTime()
    first = gpu.begin()
    second = gpu.begin()  # after 4 seconds; both at work for 6
    assert gpu.end(first) == pytest.approx(4 + 6 / 2)
    assert gpu.end(second) == pytest.approx(6 / 2 + 2)
    third = gpu.begin()
    assert gpu.end(third) == pytest.approx(5)


def test_status_and_metrics_tell_hours_of_gpus_where_one_was_used(tmp_path, monkeypatch):
    """Two parts at the same time share the GPU, so that its hours are not those of the two workers."""
    monkeypatch.setattr(Stage, "on_gpu", lambda self: self.name == "trouble")
    settings = config(tmp_path, trouble={"rest": 0.1}, workers=2, part_size=6)
    curate_dataset(settings)
    found = status(Run.of(settings))
    trouble, synthesis = found["stages"]["trouble"], found["stages"]["synthesis"]
    assert trouble["worker_hours"] == synthesis["gpu_hours"] == 0
    assert synthesis["worker_hours"] > 0
    assert found["gpu_hours_per_thousand_kept"] == pytest.approx(trouble["gpu_hours"] * 1000 / PLANNED)
    metrics = json.loads((tmp_path / "stubs/metrics.json").read_text())
    cost = metrics["stages"]["trouble"]
    assert cost["gpu_seconds"] == pytest.approx(3600 * trouble["gpu_hours"], abs=0.01)
    assert 0.6 <= cost["gpu_seconds"] < cost["seconds"], "six samples of 0.1 s at the same time as six others"
    assert cost["seconds_per_sample"] == pytest.approx(cost["gpu_seconds"] / PLANNED, abs=1e-3)
    assert cost["hours_per_thousand_kept"] == pytest.approx(found["gpu_hours_per_thousand_kept"], abs=1e-3)
    assert metrics["stages"]["synthesis"]["hours_per_thousand_kept"] >= 0


def test_metrics_tell_what_each_stage_leaves(tmp_path):
    """Of twelve samples four come through "fails", and of those (0, 3, 6, 9) two have scores of at least 5."""
    filters = [{"use": "troubled.stages:Fails"}, {"use": "troubled.stages:Trouble", "config": {}}]
    settings = config(tmp_path, filters=filters, max_error_share=0.8, decide={"thresholds": {"troubled": 5}})
    curate_dataset(settings)
    metrics = json.loads((tmp_path / "stubs/metrics.json").read_text())
    shares = {"synthesis": 1.0, "matting": 1.0, "fails": round(4 / 12, 4), "trouble": round(2 / 12, 4)}
    assert metrics["yield"] == {**shares, "all": round(2 / 12, 4)}


def test_parts_that_are_not_there_are_left(tmp_path):
    settings = config(tmp_path, trouble={"nan": [3]})
    curate_dataset(settings)
    run = Run.of(settings)
    os.remove(run.store("trouble").path("part-00001", "parquet"))
    found = status(run)["stages"]["trouble"]
    assert (found["parts"], found["done"], found["left"], found["with_errors"]) == (3, 2, 1, 1)
    assert found["errors"] == {"bad_score": 1}
