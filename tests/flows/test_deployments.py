"""A real Prefect server on a free port, a real process worker, real deployments: what the README promises."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from documented import PAGES, SMALL, commands, small_quickstart
from paths import ROOT

PREFECT = [sys.executable, "-m", "prefect"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server and a worker with a home and a project folder of their own; yields the environment that reaches them.

    The project is this one, but that its deployments plan few samples and train for few steps.
    """
    port = free_port()
    home = tmp_path_factory.mktemp("prefect")
    project = tmp_path_factory.mktemp("project")
    for name in ("data_schemas", "pipeline", "tokenar", "flows", "pyproject.toml"):
        (project / name).symlink_to(ROOT / name)
    settings = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in settings["deployments"]:
        name = deployment["entrypoint"].rpartition(":")[2]
        fewer = {
            "curate_instructar": {"config": SMALL},
            "rerun_stage": {"config": SMALL},
            "train_tokenar": {"steps": 2},
        }
        deployment["parameters"] = deployment.get("parameters", {}) | fewer.get(name, {})
    (project / "prefect.yaml").write_text(yaml.safe_dump(settings))
    env = {
        **os.environ,
        "PWD": str(project),
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
    }
    log = open(home / "log.txt", "w")
    start = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    processes = [subprocess.Popen(start, env=env, stdout=log, stderr=log, cwd=project)]
    for _ in range(240):
        try:
            urllib.request.urlopen(env["PREFECT_API_URL"] + "/health", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    worker = [*PREFECT, "worker", "start", "--type", "process", "--pool", "local"]
    processes.append(subprocess.Popen(worker, env=env, stdout=log, stderr=log, cwd=project))
    prefect(env, "work-pool", "inspect", "local", tries=60)
    prefect(env, "deploy", "--all")
    yield env
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # a worker has been seen to miss its first signal: leave nothing behind
            process.kill()


def prefect(env, *arguments, tries=1, timeout=400):
    for attempt in range(tries):
        done = subprocess.run(
            [*PREFECT, "--no-prompt", *arguments],
            env=env,
            cwd=env["PWD"],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode == 0:
            return done.stdout
        if attempt + 1 < tries:
            time.sleep(1)
    raise AssertionError(f"prefect {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")


def requested(env, path, body):
    """What the server's API answers."""
    sent = urllib.request.Request(
        f"{env['PREFECT_API_URL']}/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.long
def test_the_commands_of_the_pages_work_right_after_the_quickstart(server):
    """As printed and in their order; the runs' states say what a user's mistake was."""
    project = Path(server["PWD"])
    small_quickstart(project)
    model = project / "runs/quickstart/training/model/model.safetensors"
    manifest = project / "runs/quickstart/dataset/manifest.parquet"
    matting, identity = (
        sorted(project.glob(f"runs/quickstart/{name}/*/*.parquet")) for name in ("matting", "identity")
    )
    weights, rows = model.read_bytes(), manifest.read_bytes()
    stamps = {part: part.stat().st_mtime_ns for part in matting + identity}
    shown = [shlex.split(command) for page in PAGES for command in commands(page)]
    shown = [words for words in shown if words[:3] == ["prefect", "deployment", "run"]]
    assert {words[3] for words in shown} == {
        "curate-instructar/local", "rerun-stage/local", "train-tokenar/local", "evaluate-tokenar/local",
    }  # fmt: skip
    for words in shown:
        prefect(server, *words[1:])
    assert all(part.stat().st_mtime_ns == stamps[part] for part in matting), "what comes before the stage is left alone"
    assert all(part.stat().st_mtime_ns > stamps[part] for part in identity), "the stage itself is made again"
    assert manifest.read_bytes() == rows, "the same work gives the same bytes"
    assert model.read_bytes() == weights, "the training that was there is kept"
    assert (project / "runs/quickstart/training/evaluation/table.md").is_file()
    log = requested(server, "logs/filter", {"limit": 200, "sort": "TIMESTAMP_ASC"})
    assert any("goes on from what is there" in line["message"] for line in log)
    assert not any("Finished in state Completed" in line["message"] and line["task_run_id"] for line in log)
    (pictures,) = requested(server, "artifacts/latest/filter", {"artifacts": {"key": {"any_": ["pictures"]}}})
    assert "| picture | prompt | reasons |" in pictures["data"]
    assert "](data:image/jpeg;base64," in pictures["data"]


@pytest.mark.slow
@pytest.mark.long
def test_a_users_mistake_is_a_failed_run_with_one_clear_line(server, tmp_path):
    words = ["7 of 7 models are missing", "PramaLLC/BEN2", "google/gemma-3n-E4B-it"]
    config = f'{{"root": "{tmp_path}", "references": {{"pool": "packaged"}}}}'
    done = subprocess.run(
        [*PREFECT, "--no-prompt", "deployment", "run", "--watch", "--param", f"config={config}", "--param",
         "profile=paper", "curate-instructar/local"],
        env=server, cwd=server["PWD"], capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode != 0
    (run_id,) = re.findall(r"UUID: (\S+)", done.stdout)
    with urllib.request.urlopen(f"{server['PREFECT_API_URL']}/flow_runs/{run_id}") as answer:
        state = json.load(answer)["state"]
    assert state["type"] == "FAILED"
    assert all(word in state["message"] for word in words), state["message"]
    assert "\n" not in state["message"]


@pytest.mark.slow
@pytest.mark.long
def test_the_curation_can_be_deployed_to_kubernetes(server):
    project = Path(server["PWD"])
    text = (ROOT / "prefect.kubernetes.yaml").read_text()
    (project / "k8s.yaml").write_text(text)
    prefect(server, "work-pool", "create", "kubernetes", "--type", "kubernetes")
    prefect(server, "deploy", "--all", "--prefect-file", "k8s.yaml")
    made = requested(server, "deployments/filter", {"deployments": {"name": {"any_": ["kubernetes"]}}})
    assert {deployment["entrypoint"] for deployment in made} == {
        "flows/curate.py:curate_instructar", "flows/curate.py:rerun_stage",
    }  # fmt: skip
    assert all(deployment["parameters"]["config"]["root"].startswith("s3://") for deployment in made)
    (project / "k8s.yaml").write_text(text.replace(":curate_instructar", ":curate_instructor"))
    with pytest.raises(AssertionError, match="curate_instructor"):
        prefect(server, "deploy", "--all", "--prefect-file", "k8s.yaml")
