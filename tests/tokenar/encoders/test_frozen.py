"""T5 and DINOv2 as the trainer's shards get them, on tiny random models of the real classes."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny.encoders import save_tiny_dinov2, save_tiny_t5, tiny_vq
from transformers import Dinov2Model, T5EncoderModel

from data_schemas.errors import UserError
from tokenar.data.samples import encode_resized, read_resized, read_samples
from tokenar.encoders.patches import picture_tensor
from tokenar.encoders.teacher import Teacher, TeacherConfig, teacher_pixels
from tokenar.encoders.text import T5Config, T5Encoder
from tokenar.encoders.vq import VqTokenizer

PROMPTS = ["a cat next to a cup", "A", "the <person> on the left of the vase\n"]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return save_tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return save_tiny_dinov2(tmp_path_factory.mktemp("dinov2"))


def encoder(folder, dtype=torch.float32, batch=2, **settings) -> T5Encoder:
    return T5Encoder(T5Config(model=str(folder), **settings), dtype=dtype, batch=batch)


def test_features_of_a_prompt_do_not_depend_on_its_padding(t5):
    found = encoder(t5, tokens=48)
    features, mask = found.encode_with_mask(PROMPTS)
    assert features.shape == (3, 48, 16)
    assert (found.tokens, found.width) == (48, 16)
    network = T5EncoderModel.from_pretrained(t5).eval()
    for prompt, row, here in zip(PROMPTS, features, mask, strict=True):
        ids = found.tokenizer(prompt, return_tensors="pt").input_ids
        length = ids.shape[1]
        assert here.tolist() == [True] * length + [False] * (48 - length)
        torch.testing.assert_close(row[:length], network(ids).last_hidden_state[0], rtol=0, atol=1e-5)
    assert features[1, -1].abs().max() > 0.01  # padding is not blanked: the published model reads it


def test_long_prompts_are_cut_and_end_as_prompts_do(t5):
    found = encoder(t5, tokens=5)
    features, mask = found.encode_with_mask(["abcdefgh", "abc"])
    assert mask.sum(1).tolist() == [5, 5]  # a space, three letters and the end
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-5)


def test_captions_are_read_as_they_are_unless_cleaned(t5):
    raw, cleaned = encoder(t5, tokens=12), encoder(t5, tokens=12, clean=True)
    plain = raw.encode_with_mask(["a cat."])[0]
    assert not torch.equal(raw.encode_with_mask(["A  Cat."])[0], plain)
    assert torch.equal(cleaned.encode_with_mask(["A  Cat."])[0], plain)


def test_bfloat16_features_train_a_float32_layer(t5):
    found = encoder(t5, torch.bfloat16, tokens=12)
    features = found.encode_with_mask(PROMPTS)[0]
    assert features.dtype == torch.bfloat16
    features = features.float()
    exact = encoder(t5, tokens=12).encode_with_mask(PROMPTS)[0]
    assert 0 < (features - exact).abs().max() < 0.05 * exact.abs().max()
    layer = torch.nn.Linear(16, 1)
    layer(features).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_shards_are_encoded_with_it(t5, shards):
    samples = read_resized(str(shards / "test-*.tar"), 16, 2)
    text = encoder(t5, tokens=12)
    encoded = encode_resized(samples, VqTokenizer(tiny_vq(), 16), text)
    torch.testing.assert_close(encoded[2].text, text.encode_with_mask([samples[2].prompt])[0][0], rtol=0, atol=1e-5)


def test_text_fingerprint_follows_all_that_decides_the_features(t5, tmp_path):
    prints = [
        encoder(t5, tokens=12).fingerprint,
        encoder(t5, tokens=13).fingerprint,
        encoder(t5, tokens=12, clean=True).fingerprint,
        encoder(t5, torch.bfloat16, tokens=12).fingerprint,
        encoder(save_tiny_t5(tmp_path, seed=1), tokens=12).fingerprint,
    ]
    assert len(set(prints)) == 5
    assert encoder(t5, batch=1, tokens=12).fingerprint == prints[0]


# The teacher


def pictures(shards) -> torch.Tensor:
    samples = read_samples(str(shards / "test-*.tar"))
    return torch.stack(
        [picture_tensor(sample.target.resize((64, 64), Image.Resampling.NEAREST), 64) for sample in samples]
    )


def test_teacher_features_are_the_patches_after_the_final_norm(dinov2, shards):
    seen = pictures(shards)
    network = Dinov2Model.from_pretrained(dinov2).eval()
    for whole in (False, True):
        teacher = Teacher(TeacherConfig(model=str(dinov2), whole=whole), dtype=torch.float32, batch=2)
        features = teacher.encode(seen)
        assert features.shape == (3, 256, 24) == (3, teacher.tokens, teacher.width)
        with torch.no_grad():
            expected = network(teacher_pixels(seen, whole)).last_hidden_state
        assert expected.shape[1] == 257
        torch.testing.assert_close(features, expected[:, 1:], rtol=0, atol=1e-5)


def test_teacher_in_bfloat16(dinov2, shards):
    config = TeacherConfig(model=str(dinov2))
    half, exact = (Teacher(config, dtype=dtype).encode(pictures(shards)) for dtype in (torch.bfloat16, torch.float32))
    assert half.dtype == torch.float32
    assert 0 < (half - exact).pow(2).mean() < 0.01 * exact.pow(2).mean()


def test_teacher_fingerprint(dinov2):
    published, whole = (
        Teacher(TeacherConfig(model=str(dinov2), whole=whole), dtype=torch.float32).fingerprint
        for whole in (False, True)
    )
    assert published != whole


# What is not there or does not fit


def test_models_that_are_not_on_this_machine(tmp_path):
    with pytest.raises(UserError, match=r"text encoder: .*nothing cannot be loaded .* fetch it first"):
        encoder(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"distillation teacher: .*nothing cannot be loaded"):
        Teacher(TeacherConfig(model=str(tmp_path / "nothing")))


def test_a_model_of_another_kind(t5, dinov2):
    with pytest.raises(UserError, match=r"distillation teacher: .* cannot be loaded \(it is a t5, not a dinov2\)"):
        Teacher(TeacherConfig(model=str(t5)))
    with pytest.raises(UserError, match=r"text encoder: .* cannot be loaded"):
        encoder(dinov2)


def test_weights_that_lack_a_tensor(tmp_path):
    folder = save_tiny_dinov2(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of Dinov2Model \(layernorm.weight\)"):
        Teacher(TeacherConfig(model=str(folder)))


def test_weights_of_another_size(tmp_path):
    folder = save_tiny_dinov2(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(UserError, match=r"distillation teacher: .* cannot be loaded"):
        Teacher(TeacherConfig(model=str(folder)))


def test_pickled_weights_are_not_read(tmp_path):
    folder = save_tiny_dinov2(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"distillation teacher: .* cannot be loaded"):
        Teacher(TeacherConfig(model=str(folder)))


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="need transformers; install it"):
        T5Encoder(T5Config())
