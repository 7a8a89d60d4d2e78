"""The trainer: it learns, leaves what it says, and does what its settings ask for."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small.run import LOOK_UP, in_process, make_sample, photo, rows, tiny_config, weights, write_config, write_shard

from data_schemas.errors import UserError
from tokenar.config import PRESETS, TrainConfig, cpu_small
from tokenar.encoders.config import TextConfig, TokenizerConfig
from tokenar.encoders.patch_vq import PatchVq
from tokenar.model.folder import load_model
from tokenar.sample.sampler import Sampler
from tokenar.train import checkpoint
from tokenar.train.loop import train_model
from tokenar.train.validate import unigram


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


def test_samples_with_one_and_two_references_train_together(shards, tmp_path):
    write_shard(tmp_path / "train-0.tar", [make_sample(i, side=64, references=1 + i % 2) for i in range(5)])
    summary = train_model(tiny_config(tmp_path, tmp_path / "run", steps=4, val_shards=str(tmp_path / "train-0.tar")))
    assert summary["finished"]
    assert math.isfinite(summary["val_loss"])


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


def test_a_model_that_looks_up_is_trained_and_drawn_from_with_a_tokenizer_of_small_patches(shards, tmp_path):
    tokenizer = {"image_size": 32, "patch": 4, "vocabulary": 64, "latents": 8, "width": 16, "steps": 12}
    changes = {f"model__{name}": value for name, value in LOOK_UP.items()}
    config = tiny_config(
        shards, tmp_path / "run", tokenizer=tokenizer, model__grid=8, model__vocabulary=64, copies_weight=0.5,
        pictures_every=3, pictures=1, **changes,
    )  # fmt: skip
    summary = train_model(config)
    assert summary["finished"]
    assert summary["val_loss_target"] < math.log(64) * 1.5
    model = load_model(tmp_path / "run" / "model")
    assert isinstance(model.tokenizer, PatchVq)
    picture = Sampler(model).draw([photo("chelsea"), photo("flower")], photo("china"), "a cat beside a flower", seed=1)
    assert picture.size == (32, 32)
