"""Runs in two processes, and runs that are killed, end as an undisturbed one of one process does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small.run import rows, tiny_config, weights, write_config

from tokenar.config import with_changes
from tokenar.model.folder import load_model
from tokenar.train.loop import train_model


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """A run of one process without dropout, which every process would draw for itself."""
    config = tiny_config(
        shards, tmp_path_factory.mktemp("alone") / "run", model__dropout=0.0, model__text_dropout=0.0, batch=3,
        steps=40, save_every=7,
    )  # fmt: skip
    train_model(config)
    return config


@pytest.fixture(scope="module")
def in_two(alone, tmp_path_factory):
    """The same run in two processes, in parts and with averages."""
    return run_in_two(alone, tmp_path_factory.mktemp("two"), accumulation=2, ema=0.5)


def run_in_two(config, folder, **changes):
    config = with_changes(config, out=str(folder / "run"), **changes)
    process = torchrun(config, folder)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-3000:]
    return config


def torchrun(config, folder, *options):
    """The command in two processes; the finished process of the launcher."""
    path = write_config(config, folder / "settings.json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "-m", "tokenar.cli", "train", "--config", path, *options], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def same_numbers(one, two):
    """The same sums in another order: 1e-4 after 40 steps."""
    one, two = rows(Path(one.out)), rows(Path(two.out))
    for name in ("loss", "loss_target", "loss_references", "grad_norm"):
        single, double = ([row[name] for row in found if name in row] for found in (one, two))
        assert double == pytest.approx(single, abs=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(alone, in_two):
    same_numbers(alone, in_two)


@pytest.mark.slow
def test_two_processes_with_a_share_of_the_network_each_give_the_same(alone, in_two, tmp_path):
    sharded = run_in_two(alone, tmp_path, parallel="fsdp", ema=0.5)
    same_numbers(alone, sharded)
    validation = [
        row["val_loss"] for config in (in_two, sharded) for row in rows(Path(config.out)) if "val_loss" in row
    ]
    assert validation[0] == pytest.approx(validation[1], abs=1e-4)  # of averaged weights
    assert load_model(Path(sharded.out) / "model").net.config == alone.model


@pytest.mark.slow
def test_one_process_goes_on_as_two(alone, tmp_path):
    begun = with_changes(alone, out=str(tmp_path / "run"), steps=11)
    train_model(begun)
    process = torchrun(with_changes(begun, steps=alone.steps), tmp_path, "--resume")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-3000:]
    same_numbers(alone, begun)


def killed(process, out, step):
    """End a run with SIGKILL once it has logged ``step``: every process of it."""
    deadline = time.monotonic() + 120
    while not ((out / "metrics.jsonl").exists() and any(row["step"] >= step for row in whole_rows(out))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in [*children, process.pid]:
        os.kill(int(child), signal.SIGKILL)
    process.communicate()


def whole_rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()]


def losses_of(out):
    return [row["loss"] for row in rows(out) if "loss" in row]


@pytest.mark.slow
def test_killed_at_any_step_and_resumed_is_undisturbed(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "whole", steps=60, save_every=7, ema=0.9)
    train_model(config)
    disturbed = with_changes(config, out=str(tmp_path / "killed"))
    path = write_config(disturbed, tmp_path / "settings.json")
    process = subprocess.Popen([sys.executable, "-m", "tokenar.cli", "train", "--config", path], stderr=subprocess.PIPE)
    killed(process, tmp_path / "killed", random.randint(8, 40))
    assert not (tmp_path / "killed" / "model").exists()
    train_model(disturbed, resume=True)
    assert all(torch.equal(t, weights(tmp_path / "killed")[name]) for name, t in weights(tmp_path / "whole").items())
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_killed_and_resumed_are_undisturbed(in_two, tmp_path):
    disturbed = with_changes(in_two, out=str(tmp_path / "run"))
    killed(torchrun(disturbed, tmp_path), tmp_path / "run", random.randint(8, 25))
    process = torchrun(disturbed, tmp_path, "--resume")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-3000:]
    whole = Path(in_two.out)
    assert all(torch.equal(t, weights(tmp_path / "run")[name]) for name, t in weights(whole).items())
    assert losses_of(tmp_path / "run") == losses_of(whole)
