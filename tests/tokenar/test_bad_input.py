"""Through the commands: one line that names the thing, exit code 2, no traceback."""

import shutil

import pytest
from small_run import command, in_process, tiny_config, write_config


def refused(result, *parts):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert str(part) in lines[0]


def test_train_refuses(shards, tmp_path):
    refused(command("train"), "--shards")
    refused(in_process("train", "--shards", tmp_path / "none-*.tar", "--out", tmp_path / "a"), "none-*.tar", "no shard")
    refused(in_process("train", "--shards", "x", "--lr", "-1"), "lr")


def test_a_shard_cut_short(shards, tmp_path):
    whole = (shards / "train-00000.tar").read_bytes()
    (tmp_path / "train-0.tar").write_bytes(whole[: len(whole) // 2])
    path = write_config(tiny_config(tmp_path, tmp_path / "run", val_shards=None), tmp_path / "c.json")
    refused(command("train", "--config", path), "train-0.tar", "cut short or damaged")


def test_a_damaged_picture(shards, tmp_path):
    content = bytearray((shards / "test-00000.tar").read_bytes())
    at = content.find(b"IDAT", content.find(b".target.png"))
    content[at + 10 : at + 200] = bytes(190)
    (tmp_path / "train-0.tar").write_bytes(content)
    path = write_config(tiny_config(tmp_path, tmp_path / "run", val_shards=None), tmp_path / "c.json")
    refused(in_process("train", "--config", path), "target.png", "not a readable picture")


def test_settings_file(tmp_path):
    (tmp_path / "c.json").write_text('{"shards": 3}')
    refused(in_process("train", "--config", tmp_path / "c.json"), "c.json")
    refused(in_process("train", "--config", tmp_path / "none.json"), "none.json", "cannot be read")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.safetensors", "config.json"])
def test_a_damaged_model(name, trained, shards, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    (model / name).write_bytes((model / name).read_bytes()[:-20])
    result = in_process("sample", "--model", model, "--shards", shards / "test-*.tar", "--out", tmp_path / "out")
    refused(result, name, "again")


def test_sample_and_eval_refuse(trained, shards, tmp_path):
    test = shards / "test-*.tar"
    refused(in_process("sample", "--model", tmp_path, "--shards", test, "--out", tmp_path / "o"), "no config.json")
    result = in_process(
        "eval", "--model", trained / "model", "--shards", test, "--out", tmp_path / "o", "--predictions", tmp_path
    )
    refused(result, "test-0000.png", "no prediction")
    refused(in_process("eval", "--shards", test, "--out", tmp_path / "o"), "give a model")
