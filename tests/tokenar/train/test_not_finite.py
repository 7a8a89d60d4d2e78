"""A run whose numbers leave all bounds ends with one line, and leaves no model but its last good checkpoint."""

import math
import re

import pytest
import torch
from small.run import in_process, tiny_config, weights, write_config

from data_schemas.errors import UserError
from tokenar.data.samples import collate
from tokenar.train import batches, checkpoint, step
from tokenar.train.loop import train_model


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

    def poisoned(samples, background):
        batch = real(samples, background)
        calls.append(len(samples))
        if len(calls) == 5:
            batch.text[:] = math.nan
        return batch

    out = tmp_path / "run"
    monkeypatch.setattr(batches, "collate", poisoned)
    with pytest.raises(UserError, match="the loss is not finite at step 5;"):
        train_model(tiny_config(shards, out))
    monkeypatch.setattr(batches, "collate", real)
    assert [path.name for path in checkpoint.checkpoints(out)] == ["step-000003"]
    train_model(tiny_config(shards, out), resume=True)
    assert all(torch.equal(t, weights(out)[name]) for name, t in weights(trained).items())
