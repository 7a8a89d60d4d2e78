"""What a run leaves for sampler and evaluator, with every kind of encoder."""

import json

import pytest
import torch
from small_run import SMALL, random_net
from tiny_encoders import save_tiny_t5, tiny_vq

from data_schemas.errors import UserError
from tokenar.config import TextConfig, TokenizerConfig
from tokenar.encoder_config import T5Config
from tokenar.model_folder import load_model, save_model
from tokenar.tokenizers import PatchCodebook
from tokenar.vq import VqTokenizer

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
    assert model.text.encode(["a cat"]).shape == (1, 3, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.safetensors"
    ]  # fmt: skip


def test_a_vq_network_and_a_t5(tmp_path):
    pytest.importorskip("transformers")
    tokenizer = VqTokenizer(tiny_vq(), 16)
    text = T5Config(model=str(save_tiny_t5(tmp_path / "t5")), tokens=3)
    save_model(tmp_path / "model", random_net(), tokenizer, text)
    model = load_model(tmp_path / "model")
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert model.tokenizer.fingerprint == tokenizer.fingerprint
    assert torch.equal(model.tokenizer.encode(pictures), tokenizer.encode(pictures))
    assert (model.tokenizer.image_size, model.text.config) == (16, text)
    assert model.text.encode(["a cat"]).shape[:2] == (1, 3)


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
