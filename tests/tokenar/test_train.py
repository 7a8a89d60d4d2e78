"""The trainer: it learns, continues bit for bit, shares work between processes, and refuses clearly."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_run import SMALL, command, make_sample, rows, tiny_config, weights, write_config, write_shard

from data_schemas.errors import UserError
from tokenar import checkpoint
from tokenar.config import cpu_small, with_changes
from tokenar.model import TokenAR
from tokenar.train import learning_rate, make_optimizer, train, unigram


def test_a_run_leaves_what_it_says(trained):
    logged = rows(trained)
    assert logged[0]["step"] == 0
    assert 0 < logged[0]["unigram_entropy"] < math.log(16)
    assert {"step", "loss", "samples_per_s", "tokens_per_s", "lr", "grad_norm"} == set(logged[1])
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert {"val_loss", "val_loss_target", "val_loss_references"} < set(logged[-1])
    assert len(checkpoint.checkpoints(trained)) == 2
    assert list((trained / "tensorboard").iterdir())
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["finished"]
    assert summary["val_loss"] == logged[-1]["val_loss"]
    assert not list(trained.rglob("*.tmp"))
    model = checkpoint.load_model(trained / "model")
    assert model.net.config.width == 16
    assert not model.net.training


def test_the_first_loss_is_that_of_a_fair_die(trained):
    assert rows(trained)[1]["loss"] == pytest.approx(math.log(16), abs=1e-4)


def test_the_loss_falls(shards, tmp_path):
    summary = train(
        tiny_config(shards, tmp_path / "run", steps=80, lr=2e-2, log_every=40, save_every=80, model__dropout=0.0)
    )
    assert summary["val_loss"] < summary["val_unigram_cross_entropy"]
    assert summary["loss"] < 0.8 * summary["unigram_entropy"]


def test_resumed_weights_are_those_of_an_uninterrupted_run(trained, shards, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(shards, out, steps=3))
    train(tiny_config(shards, out, steps=6), resume=True)
    expected, found = weights(trained), weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [r["loss"] for r in rows(out) if "loss" in r] == [r["loss"] for r in rows(trained) if "loss" in r]


def test_a_damaged_checkpoint_is_passed_over(trained, shards, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(shards, out))
    newest = checkpoint.checkpoints(out)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    train(tiny_config(shards, out), resume=True)
    assert all(torch.equal(t, weights(out)[name]) for name, t in weights(trained).items())
    for path in checkpoint.checkpoints(out):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint there can be read"):
        train(tiny_config(shards, out), resume=True)


@pytest.mark.slow
def test_an_interrupted_command_continues(trained, shards, tmp_path):
    out = tmp_path / "run"
    long = tiny_config(shards, out, steps=100_000, save_every=100_000)
    path = write_config(long, tmp_path / "config.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenar.cli", "train", "--config", path], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while not ((out / "metrics.jsonl").exists() and len(rows(out)) > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "saved; continue with the same command and --resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    done = int(checkpoint.checkpoints(out)[-1].stem.split("-")[1])
    finished = command("train", "--config", path, "--resume", "--steps", done + 2)
    assert finished.returncode == 0, finished.stderr
    assert "model:" in finished.stdout
    assert [r["step"] for r in rows(out) if "loss" in r] == list(range(1, done + 3))
    assert all(torch.equal(a, b) for a, b in zip(*(first_losses(x) for x in (out, trained)), strict=True))


def first_losses(out):
    return [torch.tensor(row["loss"]) for row in rows(out) if "loss" in row][:3]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(shards, tmp_path):
    # Dropout draws per process, so it is off; the rest is sums in another order: 1e-4 after six steps.
    config = tiny_config(shards, tmp_path / "one", model__dropout=0.0, model__text_dropout=0.0, batch=3)
    train(config)
    two = with_changes(config, out=str(tmp_path / "two"))
    path = write_config(two, tmp_path / "two.json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "-m", "tokenar.cli", "train", "--config", path], capture_output=True, text=True, timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    single, double = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [r["loss"] for r in double if "loss" in r] == pytest.approx(
        [r["loss"] for r in single if "loss" in r], abs=1e-4
    )
    assert double[-1]["val_loss"] == pytest.approx(single[-1]["val_loss"], abs=1e-4)


def test_a_folder_with_something_in_it_is_left_alone(trained, shards, tmp_path):
    with pytest.raises(UserError, match="not empty; continue with --resume"):
        train(tiny_config(shards, trained))
    with pytest.raises(UserError, match=r"the run there has lr = 0.01, not 0.5"):
        train(tiny_config(shards, trained, lr=0.5), resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        train(tiny_config(shards, tmp_path / "none"), resume=True)


def test_overwrite_removes_the_run_and_nothing_else(shards, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(shards, out, steps=2))
    (out / "notes.txt").write_text("mine")
    train(tiny_config(shards, out, steps=1), overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in checkpoint.checkpoints(out)] == ["step-000001.pt"]


def test_other_samples_are_not_continued_with(shards, tmp_path):
    write_shard(tmp_path / "train-0.tar", [make_sample(i, side=64) for i in range(3)])
    config = tiny_config(tmp_path, tmp_path / "run", steps=1, val_shards=None)
    train(config)
    write_shard(tmp_path / "train-0.tar", [make_sample(i, side=64) for i in range(1, 4)])
    with pytest.raises(UserError, match="other samples than the run began with"):
        train(with_changes(config, steps=2), resume=True)


def test_samples_with_one_and_two_references_train_together(shards, tmp_path):
    write_shard(tmp_path / "train-0.tar", [make_sample(i, side=64, references=1 + i % 2) for i in range(5)])
    summary = train(tiny_config(tmp_path, tmp_path / "run", steps=4, val_shards=str(tmp_path / "train-0.tar")))
    assert summary["finished"]
    assert math.isfinite(summary["val_loss"])


def test_a_loss_that_explodes_is_one_clear_error(shards, tmp_path):
    with pytest.raises(UserError, match="the loss is not finite at step"):
        train(tiny_config(shards, tmp_path / "run", lr=1e30, steps=30))


def test_caller_keeps_its_random_numbers(shards, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train(tiny_config(shards, tmp_path / "run", steps=1))
    assert torch.equal(torch.rand(1), expected)


def test_learning_rate_curve():
    config = cpu_small("x", lr=1.0, warmup=4, steps=100)
    assert learning_rate(config, 0) == pytest.approx(0.25)
    assert learning_rate(config, 50) == pytest.approx(0.525)
    assert learning_rate(with_changes(config, schedule="constant"), 99) == 1.0


def test_norms_do_not_decay():
    net = TokenAR(SMALL)
    decay, plain = make_optimizer(net, cpu_small("x")).param_groups
    assert decay["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0.0
    assert {p.dim() for p in plain["params"]} == {1}
    assert len(plain["params"]) == 5
    assert any(p is net.img_uncond_embedding for p in decay["params"])


def test_unigram_by_hand():
    entropy, cross = unigram(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2]), 3)
    assert entropy == pytest.approx(math.log(2))
    assert cross == pytest.approx(-(math.log(3 / 7) + math.log(1 / 7)) / 2)
