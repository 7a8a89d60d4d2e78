"""The trainer: it learns, continues bit for bit, shares work between processes, and refuses clearly."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small.run import command, in_process, make_sample, rows, tiny_config, weights, write_config, write_shard

from data_schemas.errors import UserError
from tokenar.config import PRESETS, TrainConfig, cpu_small, with_changes
from tokenar.data.samples import collate
from tokenar.encoders.config import TextConfig, TokenizerConfig
from tokenar.model.folder import load_model
from tokenar.train import checkpoint, loop, step
from tokenar.train.loop import OtherRun, train_model, unigram


def test_a_run_leaves_what_it_says(trained):
    logged = rows(trained)
    assert logged[0]["step"] == 0
    assert 0 < logged[0]["unigram_entropy"] < math.log(16)
    assert set(logged[1]) == {
        "step", "loss", "loss_target", "loss_references", "grad_norm", "lr", "samples_per_s", "tokens_per_s", "mfu",
        "data_wait", "memory_gb",
    }  # fmt: skip
    assert all(row["mfu"] > 0 and 0 <= row["data_wait"] <= 1 and row["memory_gb"] > 0.1 for row in logged[1:-1])
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert {"val_loss", "val_loss_target", "val_loss_references"} < set(logged[-1])
    assert len(checkpoint.checkpoints(trained)) == 2
    assert list((trained / "tensorboard").iterdir())
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["finished"]
    assert summary["val_loss"] == logged[-1]["val_loss"]
    assert not list(trained.rglob("*.tmp"))
    model = load_model(trained / "model")
    assert model.net.config.width == 16
    assert not model.net.training


def test_the_first_loss_is_that_of_a_fair_die(trained):
    assert rows(trained)[1]["loss"] == pytest.approx(math.log(16), abs=1e-4)


def test_the_loss_falls(shards, tmp_path):
    summary = train_model(
        tiny_config(shards, tmp_path / "run", steps=80, lr=2e-2, log_every=40, save_every=80, model__dropout=0.0)
    )
    assert summary["val_loss"] < summary["val_unigram_cross_entropy"]
    assert summary["loss"] < 0.8 * summary["unigram_entropy"]


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


def test_samples_with_one_and_two_references_train_together(shards, tmp_path):
    write_shard(tmp_path / "train-0.tar", [make_sample(i, side=64, references=1 + i % 2) for i in range(5)])
    summary = train_model(tiny_config(tmp_path, tmp_path / "run", steps=4, val_shards=str(tmp_path / "train-0.tar")))
    assert summary["finished"]
    assert math.isfinite(summary["val_loss"])


def test_a_loss_that_explodes_is_one_clear_error(shards, tmp_path):
    with pytest.raises(UserError, match="the loss is not finite at step"):
        train_model(tiny_config(shards, tmp_path / "run", lr=1e30, steps=30))


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.9}, {"val_shards": None}, {"val_shards": None, "ema": 0.9}, {"lr": 1e30, "steps": 1}]
)
def test_weights_that_leave_all_numbers_become_no_model(changes, shards, tmp_path, monkeypatch):
    """After the last step no gradients come that would tell."""
    out, real = tmp_path / "run", step.step_if

    def leaving(optimizer, good):
        real(optimizer, good)
        if "lr" not in changes and optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 4:
            optimizer.param_groups[0]["params"][0].data.view(-1)[3] = math.inf

    monkeypatch.setattr(step, "step_if", leaving)
    config = tiny_config(shards, out, **{"steps": 4, "save_every": 2, "log_every": 2} | changes)
    result = in_process("train", "--config", write_config(config, tmp_path / "c.json"))
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"the (validation loss is|weights are) not finite after step [14]; set a lower --lr", line)
    assert not (out / "model").exists()
    assert not (out / "summary.json").exists()
    assert [path.name for path in checkpoint.checkpoints(out)] == ([] if "lr" in changes else ["step-000002"])
    assert "NaN" not in (out / "metrics.jsonl").read_text()


def test_a_loss_that_is_none_leaves_the_last_good_checkpoint(trained, shards, tmp_path, monkeypatch):
    real, calls = collate, []

    def poisoned(samples):
        batch = real(samples)
        calls.append(len(samples))
        if len(calls) == 5:
            batch.text[:] = math.nan
        return batch

    out = tmp_path / "run"
    monkeypatch.setattr(loop, "collate", poisoned)
    with pytest.raises(UserError, match="the loss is not finite at step 5;"):
        train_model(tiny_config(shards, out))
    monkeypatch.setattr(loop, "collate", real)
    assert [path.name for path in checkpoint.checkpoints(out)] == ["step-000003"]
    train_model(tiny_config(shards, out), resume=True)
    assert all(torch.equal(t, weights(out)[name]) for name, t in weights(trained).items())


def test_averages_become_the_model_and_the_best_validation_is_kept(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", ema=0.9, eval_every=2, keep=1, steps=5)
    train_model(config)
    model, last = weights(tmp_path / "run"), checkpoint.checkpoints(tmp_path / "run")[-1]
    (file,) = last.glob("*.safetensors")
    saved = load_file(file)
    assert all(torch.equal(model[name], saved[f"ema.{name}"]) for name in model)
    assert not torch.equal(model["norm.weight"], saved["model.norm.weight"])
    best = min((row["val_loss"], row["step"]) for row in rows(tmp_path / "run") if "val_loss" in row)[1]
    assert (tmp_path / "run" / "checkpoints" / "best").resolve().name == f"step-{best:06d}"


def test_pictures_are_drawn_at_intervals(shards, tmp_path):
    config = tiny_config(shards, tmp_path / "run", pictures_every=2, pictures=2, steps=5)
    train_model(config)
    drawn = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert drawn == ["step-000002.png", "step-000004.png"]
    with Image.open(tmp_path / "run" / "pictures" / drawn[0]) as sheet:
        assert sheet.size == (5 * 32, 2 * 32)  # two references, background, target, drawn


def test_a_trace_on_request(shards, tmp_path):
    train_model(tiny_config(shards, tmp_path / "run", profile=True))
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    assert "scaled_dot_product" in trace.read_text()


def test_weights_and_biases_gets_every_row_when_asked_for(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed"):
        train_model(tiny_config(shards, tmp_path / "none", wandb=True))
    assert not (tmp_path / "none").exists()
    told = []
    run = SimpleNamespace(log=lambda numbers, step: told.append((step, numbers)), finish=lambda: told.append("end"))
    fake = SimpleNamespace(init=lambda **options: run, util=SimpleNamespace(generate_id=lambda: "id"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train_model(tiny_config(shards, tmp_path / "run", wandb=True, steps=2))
    assert [entry[0] for entry in told[:-1]] == [0, 1, 2, 2]
    assert told[1][1]["loss"] == rows(tmp_path / "run")[1]["loss"]
    assert told[-1] == "end"


def test_any_setting_from_the_command_line(shards, tmp_path):
    path = write_config(tiny_config(shards, tmp_path / "run"), tmp_path / "c.json")
    result = in_process(
        "train", "--config", path, "--steps", 1, "--set", "model.layers=2", "--set", "ema=0.5", "--parallel", "fsdp"
    )
    assert result.returncode == 0, result.stderr
    last = checkpoint.checkpoints(tmp_path / "run")[-1]
    facts = json.loads(json.loads((last / "facts.json").read_text())["facts"]["config"])
    assert (facts["model"]["layers"], facts["ema"], facts["parallel"]) == (2, 0.5, "fsdp")
    for wrong, told in (("ema", "no value"), ("nothing=1", "nothing"), ("a.b=1", "no part 'a'"), ("ema=7", "ema")):
        result = in_process("train", "--config", path, "--set", wrong)
        assert result.returncode == 2
        assert told in result.stderr


def test_training_starts_from_a_published_checkpoint(trained, shards, tmp_path):
    begun = str(trained / "model" / "model.safetensors")
    train_model(tiny_config(shards, tmp_path / "run", steps=1, start_from=begun))
    assert rows(tmp_path / "run")[1]["loss"] < 0.99 * rows(trained)[1]["loss"]
    with pytest.raises(UserError, match="in this model"):
        train_model(tiny_config(shards, tmp_path / "other", start_from=begun, model__width=32))


def test_settings_of_earlier_runs_are_still_read():
    stored = {"shards": "x", "model": cpu_small().model.model_dump(), "steps": 5,
              "tokenizer": {"image_size": 96, "patch": 8, "vocabulary": 512, "seed": 0},
              "text": {"tokens": 16, "width": 64}}  # fmt: skip
    config = TrainConfig.model_validate_json(json.dumps(stored))
    assert (type(config.text), type(config.tokenizer)) == (TextConfig, TokenizerConfig)
    for name, preset in PRESETS.items():
        again = TrainConfig.model_validate_json(preset("x").model_dump_json())
        assert again == preset("x"), name


def test_caller_keeps_its_random_numbers(shards, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_model(tiny_config(shards, tmp_path / "run", steps=1))
    assert torch.equal(torch.rand(1), expected)


def test_unigram_by_hand():
    entropy, cross = unigram(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2]), 3)
    assert entropy == pytest.approx(math.log(2))
    assert cross == pytest.approx(-(math.log(3 / 7) + math.log(1 / 7)) / 2)
