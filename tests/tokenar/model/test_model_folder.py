"""What a run leaves for sampler and evaluator, with every kind of encoder."""

import json
import math

import pytest
import torch
from small.run import SMALL, changed, random_net
from tiny.encoders import save_tiny_t5, tiny_vq

from data_schemas.errors import UserError
from data_schemas.io.files import write_atomically
from tokenar.encoders.config import T5Config, TextConfig, TokenizerConfig
from tokenar.encoders.patches import PatchCodebook
from tokenar.encoders.vq import VqTokenizer
from tokenar.model.folder import load_model, save_model

TEXT = TextConfig(tokens=3, width=5)


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def codebook():
    config = TokenizerConfig(image_size=4, patch=2, vocabulary=11)
    return PatchCodebook(config, torch.rand(11, 12))


def test_a_patch_codebook_and_hashed_words(tmp_path):
    net, tokenizer = random_net(), codebook()
    save_model(tmp_path, net, tokenizer, TEXT)
    model = load_model(tmp_path)
    assert_same_weights(model.net.state_dict(), net.state_dict())
    assert model.net.config == SMALL
    assert not model.net.training
    assert torch.equal(model.tokenizer.codes, tokenizer.codes)
    assert model.text.encode_with_mask(["a cat"])[0].shape == (1, 3, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.safetensors"
    ]  # fmt: skip


def test_a_vq_network_and_a_t5(tmp_path):
    pytest.importorskip("transformers")
    tokenizer = VqTokenizer(tiny_vq(), 16)
    text = T5Config(model=str(save_tiny_t5(tmp_path / "t5")), tokens=3)
    net = random_net(changed(grid=8, vocabulary=64, text_width=16))
    save_model(tmp_path / "model", net, tokenizer, text)
    model = load_model(tmp_path / "model")
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert model.tokenizer.fingerprint == tokenizer.fingerprint
    assert torch.equal(model.tokenizer.encode(pictures), tokenizer.encode(pictures))
    assert (model.tokenizer.image_size, model.text.config) == (16, text)
    assert model.text.encode_with_mask(["a cat"])[0].shape[:2] == (1, 3)


def test_averages_take_the_place_of_the_weights(tmp_path):
    net = random_net()
    averages = {name: parameter.detach() * 2 for name, parameter in net.named_parameters()}
    save_model(tmp_path, net, codebook(), TEXT, ema=averages)
    assert_same_weights(load_model(tmp_path).net.state_dict(), net.state_dict() | averages)


def test_only_the_first_process_writes(tmp_path):
    save_model(tmp_path / "model", random_net(), codebook(), TEXT, first=False)
    assert not (tmp_path / "model").exists()


def test_a_model_without_a_tokenizer_says_so(tmp_path):
    save_model(tmp_path, random_net(), codebook(), TEXT)
    save_model(tmp_path, random_net(), None, TEXT)
    with pytest.raises(UserError, match=r"tokenizer\.safetensors: not there; .*tokenizer_weights"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "model format 2, this program reads 1"),
        ({"vq": {"image_size": 16, "ch_mult": []}}, "ch_mult"),
        ({"model": {}}, "layers"),
    ],
)
def test_settings_that_are_none(change, told, tmp_path):
    save_model(tmp_path, random_net(), codebook(), TEXT)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=told) as error:
        load_model(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_are_deep_or_no_table_are_one_line(tmp_path):
    save_model(tmp_path, random_net(), codebook(), TEXT)
    path = tmp_path / "config.json"
    for text, told in (("[" * 6000 + "]" * 6000, "nested too deeply"), ("[1]", "not a model configuration"),
                       ('{"format": 1, "model": {"layers": ' + "9" * 5000 + "}}", "digits"),
                       ('{"format": 1, "text": []}', "not a model configuration")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=told) as error:
            load_model(tmp_path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "change", "file", "told"),
    [
        ("model", {"grid": 3}, "model.safetensors", "img_uncond_embedding is [12, 16], in this model [27, 16]"),
        ("model", {"width": 32}, "model.safetensors", "img_uncond_embedding is [12, 16], in this model [12, 32]"),
        ("model", {"layers": 3}, "model.safetensors", "2 layers, config.json says 3"),
        ("model", {"layers": 1000}, "model.safetensors", "2 layers, config.json says 1000"),
        ("text", {"tokens": 4}, "config.json", "text of tokens 4, the model has 3"),
        ("text", {"width": 6}, "config.json", "text of width 6, the model has 5"),
    ],
)
def test_settings_of_another_model(part, change, file, told, tmp_path):
    save_model(tmp_path, random_net(), codebook(), TEXT)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {part: settings[part] | change}))
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / file}: ")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_size": 6}, "tokens along a side 3, the model has 2"),
        ({"vocabulary": 12}, "vocabulary 12, the model has 11"),
    ],
)
def test_a_tokenizer_of_another_model(changes, told, tmp_path):
    config = TokenizerConfig.model_validate({"image_size": 4, "patch": 2, "vocabulary": 11} | changes)
    save_model(tmp_path, random_net(), PatchCodebook(config, torch.rand(config.vocabulary, 12)), TEXT)
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'tokenizer.safetensors'}: {told}")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.safetensors"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(name, value, tmp_path):
    net, tokenizer = random_net(), codebook()
    (net.layers[1].ffn_norm.weight if name[0] == "m" else tokenizer.codes).data.flatten()[2] = value
    save_model(tmp_path, net, tokenizer, TEXT)
    tensor = "layers.1.ffn_norm.weight" if name[0] == "m" else "codes"
    with pytest.raises(UserError, match=f"{name}: {tensor} holds NaN or infinity"):
        load_model(tmp_path)


def test_a_file_that_is_being_written_is_nobody_elses(tmp_path):
    """Temporary names were made of the process's number, which another machine's process may have too."""
    names = []
    write_atomically(tmp_path / "a", lambda one: write_atomically(tmp_path / "a", lambda two: (
        names.extend([one, two]), two.write_text("two"), one.write_text("one"))))  # fmt: skip
    assert len(set(names)) == 2
    assert (tmp_path / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
