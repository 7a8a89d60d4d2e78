"""What becomes of a run that is there already: continued bit for bit, left alone, overwritten or refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from small.run import command, make_sample, rows, tiny_config, weights, write_config, write_shard

from data_schemas.errors import UserError
from tokenar.config import with_changes
from tokenar.train import checkpoint
from tokenar.train.loop import OtherRun, train_model


def test_resumed_weights_are_those_of_an_uninterrupted_run(trained, shards, tmp_path):
    out = tmp_path / "run"
    train_model(tiny_config(shards, out, steps=3))
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # the disk was full
    train_model(tiny_config(shards, out, steps=6), resume=True)
    expected, found = weights(trained), weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [r["loss"] for r in rows(out) if "loss" in r] == [r["loss"] for r in rows(trained) if "loss" in r]


def test_a_damaged_checkpoint_is_passed_over(trained, shards, tmp_path):
    out = tmp_path / "run"
    train_model(tiny_config(shards, out))
    newest = checkpoint.checkpoints(out)[-1]
    (file,) = newest.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    train_model(tiny_config(shards, out), resume=True)
    assert all(torch.equal(t, weights(out)[name]) for name, t in weights(trained).items())
    for path in checkpoint.checkpoints(out):
        (path / "facts.json").write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint there can be read"):
        train_model(tiny_config(shards, out), resume=True)


def test_a_run_of_another_network_is_told_apart_before_its_weights_are_read(trained, shards, tmp_path):
    """The quickstart moves such a run aside: the model that it starts from may have other layers than an older one."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    with pytest.raises(OtherRun, match="the run there has model = "):
        train_model(tiny_config(shards, out, model__layers=2), resume=True)


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
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "saved; continue with the same command and --resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    done = int(checkpoint.checkpoints(out)[-1].name.split("-")[1])
    finished = command("train", "--config", path, "--resume", "--steps", done + 2)
    assert finished.returncode == 0, finished.stderr
    assert "model:" in finished.stdout
    assert [r["step"] for r in rows(out) if "loss" in r] == list(range(1, done + 3))
    assert all(torch.equal(a, b) for a, b in zip(*(first_losses(x) for x in (out, trained)), strict=True))


def first_losses(out):
    return [torch.tensor(row["loss"]) for row in rows(out) if "loss" in row][:3]


def test_a_folder_with_something_in_it_is_left_alone(trained, shards, tmp_path):
    with pytest.raises(UserError, match="not empty; continue with --resume"):
        train_model(tiny_config(shards, trained))
    with pytest.raises(UserError, match=r"the run there has lr = 0.01, not 0.5"):
        train_model(tiny_config(shards, trained, lr=0.5), resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        train_model(tiny_config(shards, tmp_path / "none"), resume=True)


def test_overwrite_removes_the_run_and_nothing_else(shards, tmp_path):
    out = tmp_path / "run"
    train_model(tiny_config(shards, out, steps=2))
    (out / "notes.txt").write_text("mine")
    for left in ("evaluation/metrics.json", "model/.model.safetensors.4242.tmp", ".summary.json.7.tmp"):
        (out / left).parent.mkdir(exist_ok=True)
        (out / left).write_text("of the run before")
        os.utime(out / left, (0, 0))
    train_model(tiny_config(shards, out, steps=1), overwrite=True)
    assert not (out / "evaluation").exists()
    assert not list(out.rglob("*.tmp"))
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in checkpoint.checkpoints(out)] == ["step-000001"]


def test_a_finished_run_that_is_resumed_says_what_it_said(shards, tmp_path):
    first = train_model(tiny_config(shards, tmp_path / "run", steps=3))
    again = train_model(tiny_config(shards, tmp_path / "run", steps=3), resume=True)
    assert first.pop("seconds") > 0
    assert again.pop("seconds") > 0
    assert again == first


def test_a_run_that_goes_on_is_not_summed_up_as_it_was(shards, tmp_path):
    out = tmp_path / "run"
    train_model(tiny_config(shards, out, steps=3))

    def stop(row):
        assert not (out / "summary.json").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(tiny_config(shards, out, steps=6), stop, resume=True)
    assert not (out / "summary.json").exists()


def test_a_log_of_anything_is_continued(shards, tmp_path):
    out = tmp_path / "run"
    train_model(tiny_config(shards, out, steps=3))
    with open(out / "metrics.jsonl", "ab") as file:
        file.write(b'[1]\n{"step": "x"}\n{"loss": 2}\n\xff\xfe\n' + b"[" * 5000 + b"\n")
    train_model(tiny_config(shards, out, steps=4), resume=True)
    assert [row["step"] for row in rows(out) if "loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize("numbers", [range(1, 4), range(3)], ids=["other ids", "other pictures of the same ids"])
def test_other_samples_are_not_continued_with(tmp_path, numbers):
    write_shard(tmp_path / "train-0.tar", [make_sample(i, side=64) for i in range(3)])
    config = tiny_config(tmp_path, tmp_path / "run", steps=1, val_shards=None)
    train_model(config)
    turned = [make_sample(i, side=64) for i in numbers]
    turned = [replace(s, target=s.target.transpose(Image.Transpose.FLIP_TOP_BOTTOM)) for s in turned]
    write_shard(tmp_path / "train-0.tar", turned)
    with pytest.raises(OtherRun, match="other samples than"):
        train_model(with_changes(config, steps=2), resume=True)
