"""Through the commands: one line that names the thing, exit code 2, no traceback."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from small.run import command, in_process, make_sample, tiny_config, write_config, write_shard

from data_schemas.shards import encode_sample, read_shard


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


@pytest.mark.slow
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
    refused(result, name, "mend it" if name == "config.json" else "again")


def test_sample_refuses(shards, tmp_path):
    test = shards / "test-*.tar"
    refused(in_process("sample", "--model", tmp_path, "--shards", test, "--out", tmp_path / "o"), "no config.json")


def test_eval_refuses(trained, shards, tmp_path):
    model, out = trained / "model", tmp_path / "o"
    head = ("eval", "--shards", shards / "test-*.tar", "--out", out)
    refused(in_process(*head), "nothing to evaluate; give models, folders of predictions, or both")
    refused(in_process(*head, "--model", tmp_path), "no model there")
    refused(in_process(*head, "--predictions", tmp_path), "no prediction for 3 of 3 samples, first test-0000.png")
    refused(in_process(*head, "--predictions", tmp_path / "none"), "none: no such folder")
    refused(in_process(*head, "--model", model, "--model", model), "second method would be called 'run'")
    refused(in_process(*head, "--model", f"a={model}", "--predictions", f"a={tmp_path}"), "'a' names a model and")
    refused(in_process(*head, "--model", f"../a={model}"), "'../a' cannot name a method")
    refused(in_process(*head, "--model", model, "--set", "lpip=alex"), "lpip: no such setting")
    refused(in_process(*head, "--model", model, "--set", "sampling.top_p=2"), "top_p: ")
    refused(in_process(*head, "--model", model, "--encoders", "best"), "no encoders 'best'; there is: paper")
    encoders = ("--set", f"clip={tmp_path / 'none'}", "--set", f"lpips={model / 'config.json'}")
    refused(in_process(*head, "--model", model, *encoders), "2 encoders missing: lpips: ", "clip: ")
    assert not out.exists(), "all of it before anything is drawn"


def evaluated(folder, *samples, **drawn):
    """The command on a shard of these samples; the pictures drawn are their targets, or those named."""
    write_shard(folder / "test-0.tar", list(samples))
    (folder / "drawn").mkdir()
    for sample in samples:
        drawn.get("picture", sample.target).save(folder / f"drawn/{sample.sample_id}.png")
    options = ("--shards", folder / "test-0.tar", "--out", folder / "out", "--predictions", f"x={folder / 'drawn'}")
    return ("eval", *options)


def test_eval_on_bad_pictures(tmp_path):
    for number, (picture, words) in enumerate(
        [(Image.new("RGB", (20, 30)), "20 x 30 pixels, expected a square"), (Image.new("L", (16, 16)), None)]
    ):
        folder = tmp_path / str(number)
        result = in_process(*evaluated(folder, make_sample(0, side=32), picture=picture))
        if words is None:
            assert result.returncode == 0, result.stderr
        else:
            refused(result, "train-0000.png", words)
    arguments = evaluated(tmp_path / "cut", make_sample(0, side=32))
    path = tmp_path / "cut/drawn/train-0000.png"
    path.write_bytes(path.read_bytes()[:-40])
    refused(in_process(*arguments), "train-0000.png", "not a readable picture")
    path.write_bytes(b"")
    refused(in_process(*arguments), "train-0000.png", "not a readable picture")


def without(name, folder):
    """A shard whose sample lacks a member."""
    sample = make_sample(0, side=32)
    arguments = evaluated(folder, sample)
    with tarfile.open(folder / "test-0.tar", "w") as tar:
        for member, content in encode_sample(sample).items():
            if not member.startswith(name):
                entry = tarfile.TarInfo(f"{sample.sample_id}.{member}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return arguments


def test_eval_on_bad_shards(trained, tmp_path):
    refused(in_process(*without("background", tmp_path / "a")), "train-0000", "'background.png' is missing")
    refused(in_process(*without("reference", tmp_path / "b")), "train-0000", "0 references, expected 1 to 8")
    twice = evaluated(tmp_path / "c", *(make_sample(number, side=32) for number in (0, 1, 0)))
    refused(in_process(*twice), "sample train-0000 is there twice")
    sample = make_sample(0, side=32)
    sample.info["boxes"] = [[0, 0, 1], [0, 0, 1, 1]]
    refused(in_process(*evaluated(tmp_path / "d", sample)), "train-0000: boxes must be lists of four numbers")


def test_eval_with_five_references_and_a_long_prompt(trained, tmp_path):
    sample = make_sample(0, side=32)
    sample.references, sample.references_rgba = sample.references[:1] * 5, sample.references_rgba[:1] * 5
    sample.info["boxes"] = [[0, 0, 0.5, 1]] * 5
    sample.prompt = "a very long prompt " * 200
    arguments = evaluated(tmp_path / "a", sample)
    assert in_process(*arguments).returncode == 0, "pictures of other methods may have more references"
    refused(in_process(*arguments, "--model", trained / "model"), "5 references; the model takes 1 to 2")


def test_a_reference_with_alpha_is_seen_on_white(tmp_path):
    """Transparent parts become white, whatever colour lies under them (docs/differences.md, "Transparent pixels")."""
    sample = make_sample(0, side=32)
    pixels = np.array(sample.references_rgba[0])
    pixels[pixels[..., 3] == 0, :3] = (255, 0, 0)
    sample.references[0] = Image.fromarray(pixels)
    path = write_shard(tmp_path / "test-0.tar", [sample])
    (read,) = read_shard(str(path))
    assert read.references[0].mode == "RGB"
    assert read.references[0].getpixel((0, 0)) == (255, 255, 255)


def test_a_checkpoint_that_was_cut_short(trained, shards, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-20])
    result = in_process("eval", "--shards", shards / "test-*.tar", "--out", tmp_path / "o", "--model", model)
    refused(result, "model.safetensors", "train or copy the model again")


@pytest.mark.parametrize("command", ["sample", "eval", "attention"])
def test_weights_that_are_no_numbers(command, trained, shards, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    weights = load_file(model / "model.safetensors")
    save_file({name: w * float("nan") for name, w in weights.items()}, model / "model.safetensors")
    result = in_process(command, "--shards", shards / "test-*.tar", "--out", tmp_path / "o", "--model", model)
    refused(result, "model.safetensors: ", "holds NaN or infinity")
    assert not list((tmp_path / "o").rglob("*.png"))
