"""The packaged start is made by one command, which goes on after kill -9 and ends with the same model."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run_here
from paths import ROOT

from flows.pretrain import main

TINY = """
import sys
from pathlib import Path
from tokenar import config
from flows.pretrain import pretrain

base = config.cpu_base
config.PRESETS["cpu_base"] = lambda *a, **k: base(*a, **({
    "model__layers": 1, "model__width": 16, "model__heads": 2, "model__grid": 4, "model__vocabulary": 32,
    "tokenizer": {"image_size": 16, "patch": 4, "vocabulary": 32, "latents": 4, "width": 8, "steps": 12},
    "steps": 200, "log_every": 50, "save_every": 10, "eval_every": 0, "precision": "float32",
} | k))
pretrain(sys.argv[1], samples=60, out=Path(sys.argv[2]))
"""


def started(root: Path, out: Path) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", TINY, str(root), str(out)], cwd=ROOT, env=env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    told, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-3000:]
    return told


@pytest.mark.slow
@pytest.mark.long
def test_it_goes_on_after_a_kill_and_packages_what_it_made(tmp_path):
    killed = started(tmp_path / "a", tmp_path / "start-a")
    checkpoints = tmp_path / "a/pretrain/training/checkpoints"
    until = time.monotonic() + 150
    while not list(checkpoints.glob("step-*")) and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert killed.poll() is None, killed.communicate()[1][-3000:]
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "a/pretrain/training/model").exists(), "killed in the middle"

    told = finished(started(tmp_path / "a", tmp_path / "start-a"))
    assert "goes on from what is there" in told
    finished(started(tmp_path / "b", tmp_path / "start-b"))
    files = ("config.json", "model.safetensors", "tokenizer.safetensors")
    for name in files:
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("start-a", "start-b"))
        assert one == other, name
    card = (tmp_path / "start-a/README.md").read_text()
    assert all(hashlib.sha256((tmp_path / "start-a" / name).read_bytes()).hexdigest() in card for name in files)
    assert card in told
    assert "license: mit" in card
    rows = [json.loads(line) for line in (tmp_path / "start-a/training.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss_target" in row]
    assert steps == sorted(set(steps)) == [50, 100, 150, 200]
    recipe = json.loads((tmp_path / "start-a/recipe.json").read_text())
    assert recipe["curation"]["samples"] == 60
    assert recipe["training"]["steps"] == 200


@pytest.mark.parametrize("samples", ["0", "-3", "7"])
def test_too_few_samples_are_one_line(tmp_path, samples):
    done = run_here(main, "pretrain", "--root", tmp_path, "--samples", samples, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == f"error: --samples {samples}: too few to test on; give at least 8\n"
