"""``make quickstart``: with a server that never comes, that dies, and again over what an earlier run left."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT
from prefect.server.api.server import SubprocessASGIServer

from flows.quickstart import quickstart, server_comes
from pipeline.config import CurationConfig

SMALL = {"samples": 12, "part_size": 6, "planning": {"test_share": 0.25}}


def run_quickstart(root, *, samples=16, **environment):
    command = [sys.executable, "-m", "flows.quickstart", "--root", str(root), "--samples", str(samples), "--steps", "2"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {"PREFECT_HOME": str(root / "home")}
    return subprocess.run(command, cwd=ROOT, env=env | environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.long
def test_a_server_that_never_comes_costs_one_line(tmp_path):
    done = run_quickstart(tmp_path, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="1")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("Waiting for Prefect's temporary server")
    (word,) = [line for line in said if "going on without Prefect" in line]
    assert "Timed out" in word
    assert "Traceback" not in done.stdout + done.stderr
    places = dict(line.split(maxsplit=1) for line in said[said.index("Done. Look at the report first:") + 1 :])
    assert list(places) == [
        "kept", "report", "metrics", "manifest", "shards", "test_shards", "checkpoint", "samples", "evaluation",
    ]  # fmt: skip
    assert all(Path(place).exists() for what, place in places.items() if what not in ("kept", "shards", "test_shards"))


def test_a_server_that_dies_is_not_waited_for(monkeypatch, capsys):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    dead = [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(SubprocessASGIServer, "_run_uvicorn_command", lambda self: subprocess.Popen(dead))
    began = time.monotonic()
    assert not server_comes()
    assert time.monotonic() - began < 15
    waiting, without = capsys.readouterr().out.splitlines()
    assert waiting.startswith("Waiting for Prefect's temporary server")
    assert "it ended with status 1" in without


@pytest.mark.slow
@pytest.mark.long
def test_a_server_that_is_named_and_down_costs_one_line(tmp_path):
    """Run apart: Prefect reads its settings once."""
    code = "import flows.quickstart as q; print(q.server_comes(), q.STARTUP_TIMEOUT.value())"
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    env |= {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    word, answer = done.stdout.splitlines()
    assert "going on without Prefect" in word
    assert answer == "False 300", "a temporary server would have minutes to come"


@pytest.mark.slow
@pytest.mark.long
def test_again_goes_on_and_another_dataset_loses_no_model(tmp_path, capsys):
    config = CurationConfig.parse({"root": str(tmp_path), **SMALL}, "test")
    training = tmp_path / "quickstart/training"
    quickstart.fn(config, 2)
    first = (training / "model/model.safetensors").read_bytes()
    assert "goes on from what is there" not in capsys.readouterr().out
    quickstart.fn(config, 2)
    assert "goes on from what is there" in capsys.readouterr().out
    assert (training / "model/model.safetensors").read_bytes() == first

    places = quickstart.fn(config.model_copy(update={"seed": 1}), 2)
    assert f"it is kept as {training}-1" in capsys.readouterr().out
    assert Path(f"{training}-1/model/model.safetensors").read_bytes() == first
    assert (training / "model/model.safetensors").read_bytes() != first
    assert json.loads((training / "summary.json").read_text())["finished"]
    assert Path(places["evaluation"]).is_file()
