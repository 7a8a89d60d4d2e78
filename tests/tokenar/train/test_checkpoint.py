"""Checkpoints of one process: whole or not there, and written while training goes on."""

import json
import os
import threading

import pytest
import spread
import torch
from small.saved import assert_equal, everything, names, saved
from spread import ALONE, Training

from data_schemas.errors import UserError
from tokenar.train import checkpoint
from tokenar.train.checkpoint import Checkpoints, checkpoints


def test_what_is_saved_comes_back(tmp_path):
    training = saved(tmp_path, 1, 2)
    assert names(tmp_path) == ["step-000001", "step-000002"]
    fresh = Training(ALONE, seed=1)
    fresh.optimizer.param_groups[0]["lr"] = 0.5
    assert fresh.load(Checkpoints(tmp_path, 9, ALONE)) == {"place": 8, "step": 2}
    assert_equal(everything(fresh), everything(training))
    assert [g["lr"] for g in fresh.optimizer.param_groups] == [1e-2, 1e-2]
    assert [g["weight_decay"] for g in fresh.optimizer.param_groups] == [0.05, 0.0]
    assert fresh.optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert fresh.steps(3, 6) == training.steps(3, 6)
    assert_equal(everything(fresh), everything(training))
    assert fresh.load(Checkpoints(tmp_path, 9, ALONE), path=checkpoints(tmp_path)[0]) == {"place": 4, "step": 1}


def test_before_the_first_step_there_is_no_optimiser_state(tmp_path):
    training, saver = Training(ALONE), Checkpoints(tmp_path, 1, ALONE)
    training.save(saver, 0)
    saver.wait()
    fresh = Training(ALONE, seed=1)
    fresh.load(saver)
    assert_equal(everything(fresh), everything(training))


def test_the_state_is_that_of_the_moment_and_training_goes_on(tmp_path, monkeypatch):
    may_write, write = threading.Event(), checkpoint.write_rank_file
    monkeypatch.setattr(checkpoint, "write_rank_file", lambda *given: may_write.wait(60) and write(*given))
    training, saver = Training(ALONE), Checkpoints(tmp_path, 2, ALONE)
    training.step(0)
    expected = everything(training)
    training.save(saver, 1)
    training.steps(1, 4)
    assert names(tmp_path) == []
    may_write.set()
    saver.wait()
    fresh = Training(ALONE, seed=1)
    fresh.load(saver)
    assert_equal(everything(fresh), expected)
    assert not torch.equal(everything(training)["norm.weight"], expected["norm.weight"])


def test_the_next_save_waits_for_the_one_before(tmp_path):
    training, saver = Training(ALONE), Checkpoints(tmp_path, 9, ALONE)
    for step in range(1, 6):
        with torch.no_grad():
            training.net.norm.weight.fill_(step)
        training.save(saver, step)
    saver.wait()
    for step, path in enumerate(checkpoints(tmp_path), 1):
        training.load(saver, path=path)
        assert torch.equal(training.net.norm.weight, torch.full([16], float(step)))


def test_the_newest_stay_and_the_best(tmp_path):
    training, saver = Training(ALONE), Checkpoints(tmp_path, 2, ALONE)
    best = tmp_path / "checkpoints/best"
    for step in range(1, 8):
        training.save(saver, step, best=step in (2, 5))
        saver.wait()
        if step == 4:
            assert names(tmp_path) == ["step-000002", "step-000003", "step-000004"]
            assert os.readlink(best) == "step-000002"
    assert names(tmp_path) == ["step-000005", "step-000006", "step-000007"]
    assert (best / "facts.json").is_file()
    assert os.readlink(best) == "step-000005"
    assert sorted(path.name for path in best.parent.iterdir()) == ["best", *names(tmp_path)]


def test_a_step_that_is_saved_already_is_not_written_again(tmp_path):
    training = saved(tmp_path, 1)
    path = checkpoints(tmp_path)[0]
    before = path.stat().st_ino
    saver = Checkpoints(tmp_path, 1, ALONE)
    training.load(saver)
    training.save(saver, 1, best=True)
    saver.wait()
    assert path.stat().st_ino == before
    assert (tmp_path / "checkpoints/best").resolve() == path


WEIGHTS = "rank-00000-of-00001.safetensors"


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "harm", "told"),
    [
        (WEIGHTS, cut, f"{WEIGHTS} is missing or cut short"),
        (WEIGHTS, flip, f"{WEIGHTS} is damaged"),
        (WEIGHTS, os.unlink, f"{WEIGHTS} is missing or cut short"),
        ("facts.json", cut, "facts.json is missing or damaged"),
        ("facts.json", os.unlink, "facts.json is missing or damaged"),
        ("facts.json", lambda path: path.write_text("[]"), "facts.json is missing or damaged"),
        ("facts.json", lambda path: path.write_text("[" * 6000 + "]" * 6000), "facts.json is missing or damaged"),
        ("facts.json", lambda path: path.write_text('{"format": 1, "files": 3}'), "facts.json is missing or damaged"),
        ("facts.json", lambda path: (path.unlink(), os.mkfifo(path)), "facts.json is missing or damaged"),
        (
            "facts.json",
            lambda path: path.write_text('{"format": 9}'),
            "facts.json is of format 9, this program reads 1",
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(file, harm, told, tmp_path, capsys):
    training = saved(tmp_path, 1, 2)
    expected = everything(training)
    saver = Checkpoints(tmp_path, 3, ALONE)
    training.step(3)
    training.save(saver, 3)
    saver.wait()
    newest = checkpoints(tmp_path)[-1]
    harm(newest / file)
    assert training.load(saver)["step"] == 2
    assert_equal(everything(training), expected)
    assert capsys.readouterr().err == f"{newest}: {told}; passed over\n"


def test_going_on_from_before_a_damaged_one(tmp_path):
    training = saved(tmp_path, 1, 2, 3)
    cut(tmp_path / "checkpoints/step-000003/facts.json")
    cut(tmp_path / "checkpoints/step-000002/facts.json")
    saver = Checkpoints(tmp_path, 1, ALONE)
    assert training.load(saver)["step"] == 1
    training.steps(2, 3)
    expected = everything(training)
    training.save(saver, 2)
    saver.wait()
    assert names(tmp_path) == ["step-000002", "step-000003"]  # 1 is dropped for 2, not for what is damaged
    assert training.load(Checkpoints(tmp_path, 1, ALONE))["step"] == 2
    assert_equal(everything(training), expected)


def test_nothing_to_resume(tmp_path):
    training = Training(ALONE)
    saver = Checkpoints(tmp_path / "none", 1, ALONE)
    assert saver.newest() is None
    with pytest.raises(UserError, match="none: nothing to resume, no checkpoint found; leave --resume away"):
        training.load(saver)
    saved(tmp_path, 1)
    path = checkpoints(tmp_path)[0]
    (path / "facts.json").write_text("")
    saver = Checkpoints(tmp_path, 1, ALONE)
    with pytest.raises(UserError, match="no checkpoint there can be read; start again with --overwrite"):
        training.load(saver)
    with pytest.raises(UserError, match=r"step-000001: facts\.json is missing or damaged; resume from another"):
        training.load(saver, path=path)


def other(**changes):
    return Training(ALONE, seed=1, config=spread.CONFIG.model_copy(update=changes))


def test_a_checkpoint_of_another_size(tmp_path):
    saved(tmp_path, 1)
    saver = Checkpoints(tmp_path, 1, ALONE)
    wide = other(width=24)
    before = spread.state(wide.net, wide.optimizer)
    shapes = r"ema\.cls_embedding\.cap_proj\.fc1\.weight is \[16, 5\], in this model \[24, 5\]; resume with"
    with pytest.raises(UserError, match=shapes):
        wide.load(saver)
    assert_equal(spread.state(wide.net, wide.optimizer), before)
    with pytest.raises(UserError, match=r"ema\.layers\.1\.\S+ is \[16, 16\], not in this model"):
        other(layers=1).load(saver)
    with pytest.raises(UserError, match=r"ema\.layers\.2\.\S+ is not in it, in this model \[16, 16\]"):
        other(layers=3).load(saver)
    training = Training(ALONE)
    training.ema = {}
    with pytest.raises(UserError, match=r"ema\.\S+ is \[16, 5\], not in this model"):
        training.load(saver)


def test_a_checkpoint_of_another_optimiser(tmp_path):
    training = saved(tmp_path, 1)
    saver = Checkpoints(tmp_path, 1, ALONE)
    training.optimizer = torch.optim.SGD(training.net.parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"another optimiser \(AdamW of 13 \+ 10 parameters, here SGD of 23 parameters"):
        training.load(saver)
    training.optimizer = torch.optim.AdamW(training.net.parameters())
    with pytest.raises(UserError, match="here AdamW of 23 parameters"):
        training.load(saver)


def test_a_save_that_fails_is_told_at_the_next_call(tmp_path, monkeypatch):
    training = saved(tmp_path, 1)
    expected = everything(training)

    def full(*given):
        raise OSError(28, "No space left on device")

    saver = Checkpoints(tmp_path, 1, ALONE)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_rank_file", full)
        training.step(2)
        training.save(saver, 2)
        with pytest.raises(UserError, match=r"step-000002: cannot be saved \(No space left on device\)") as told:
            training.save(saver, 3)
    assert "\n" not in str(told.value)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]
    saver.wait()
    training.save(saver, 2)
    saver.wait()
    assert names(tmp_path) == ["step-000002"]
    training.load(saver, path=checkpoints(tmp_path)[0])
    assert not torch.equal(everything(training)["norm.weight"], expected["norm.weight"])


def test_no_file_is_a_pickle(tmp_path):
    saved(tmp_path, 1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["facts.json", WEIGHTS]
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".json":
            json.loads(content)
            continue
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__")
        assert 8 + length + max(entry["data_offsets"][1] for entry in header.values()) == len(content)


def test_names_do_not_depend_on_compiled_blocks(tmp_path):
    training = saved(tmp_path, 1)
    expected = everything(training)
    for number, block in enumerate(training.net.layers):
        training.net.layers[number] = torch.compile(block)
    assert any("_orig_mod" in name for name in training.net.state_dict())
    saver = Checkpoints(tmp_path, 9, ALONE)
    training.save(saver, 2)
    saver.wait()
    fresh = Training(ALONE, seed=1)
    assert fresh.load(saver)["step"] == 2
    assert_equal(everything(fresh), expected)
