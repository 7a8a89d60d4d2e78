"""Tokenizer, text and the order of the data."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_schemas.errors import UserError
from tokenar import data
from tokenar.config import TextConfig, TokenizerConfig
from tokenar.text import HashedWords, word_vector, words
from tokenar.tokenizers import PatchCodebook, picture_tensor, tensor_picture

TINY = TokenizerConfig(image_size=32, patch=4, vocabulary=16)


@pytest.fixture(scope="module")
def samples(shards):
    return data.read_resized(str(shards / "train-*.tar"), 32, 2)


@pytest.fixture(scope="module")
def pixels(samples):
    return data.as_float(torch.cat([sample.pixels for sample in samples]))


def test_codes_survive_decoding(pixels):
    codebook = PatchCodebook.fit(TINY, pixels)
    codes = torch.randint(16, (3, 64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(codebook.encode(codebook.decode(codes)), codes)


def test_codes_are_in_raster_order():
    codebook = PatchCodebook(TINY, torch.linspace(-1, 1, 16)[:, None].expand(16, 48).contiguous())
    picture = codebook.decode(torch.arange(64)[None] % 16)
    assert picture[0, 0, 0, 0] == -1
    assert picture[0, 0, 0, 31] < picture[0, 0, 4, 31]
    assert codebook.encode(picture)[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_fit_is_deterministic_and_ordered_by_brightness(pixels):
    first, again = PatchCodebook.fit(TINY, pixels), PatchCodebook.fit(TINY, pixels)
    assert torch.equal(first.codes, again.codes)
    means = first.codes.mean(dim=1)
    assert (means.diff() > -1e-4).all()


def test_more_codes_come_closer(pixels):
    errors = []
    for vocabulary in (4, 16, 64):
        codebook = PatchCodebook.fit(TokenizerConfig(image_size=32, patch=4, vocabulary=vocabulary), pixels)
        errors.append((codebook.decode(codebook.encode(pixels)) - pixels).pow(2).mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_tokenizer_file_roundtrip(pixels, tmp_path):
    codebook = PatchCodebook.fit(TINY, pixels)
    codebook.save(tmp_path / "t.safetensors")
    loaded = PatchCodebook.load(tmp_path / "t.safetensors")
    assert loaded.config == TINY
    assert torch.equal(loaded.encode(pixels), codebook.encode(pixels))
    (tmp_path / "cut").write_bytes((tmp_path / "t.safetensors").read_bytes()[:-50])
    with pytest.raises(UserError, match="cut: not a whole tokenizer file"):
        PatchCodebook.load(tmp_path / "cut")


def test_too_few_patches_are_a_clear_error():
    with pytest.raises(UserError, match="1 different patches"):
        PatchCodebook.fit(TINY, torch.zeros(2, 3, 32, 32))


def test_pixels_survive_the_float_scale():
    from PIL import Image

    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    assert tensor_picture(picture_tensor(picture, 8)).tobytes() == picture.tobytes()


def test_words_and_their_golden_vectors():
    assert words("A cat, next-to (the) CUP. !") == ["a", "cat", "next-to", "the", "cup"]
    np.testing.assert_allclose(word_vector("cat", 4), GOLDEN_CAT, rtol=0, atol=1e-7)


GOLDEN_CAT = [0.10551739, -0.71924728, -0.92721260, 0.28763837]


def test_text_is_padded_with_zeros_and_cut():
    encoder = HashedWords(TextConfig(tokens=3, width=8))
    features = encoder.encode(["one two three four", "Two"])
    assert features.shape == (2, 3, 8)
    assert torch.equal(features[0, 1], features[1, 0])
    assert features[1, 1:].abs().sum() == 0
    assert features[0, 0].norm() > 0


@settings(deadline=None, max_examples=100)
@given(
    references=st.lists(st.integers(1, 4), min_size=1, max_size=40),
    batch=st.integers(1, 9),
    world=st.integers(1, 5),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 99),
)
def test_every_sample_once_an_epoch_whatever_the_world(references, batch, world, seed, epoch):
    batches = data.epoch_batches(references, batch, seed, epoch)
    assert batches == data.epoch_batches(references, batch, seed, epoch)
    seen = []
    for chosen in batches:
        assert len({references[i] for i in chosen}) == 1
        assert len(chosen) <= batch
        for rank in range(world):
            seen += data.rank_share(chosen, rank, world)
    assert sorted(seen) == list(range(len(references)))


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 20), batch=st.integers(1, 6), seed=st.integers(0, 9), stop=st.integers(0, 30))
def test_order_continues_from_its_position(count, batch, seed, stop):
    whole = data.Order([2] * count, batch, seed)
    expected = [whole.next() for _ in range(stop + 10)]
    first = data.Order([2] * count, batch, seed)
    head = [first.next() for _ in range(stop)]
    resumed = data.Order([2] * count, batch, seed, data.Position(first.position.epoch, first.position.batch))
    assert head + [resumed.next() for _ in range(10)] == expected


def test_epochs_differ():
    assert data.epoch_batches([2] * 30, 4, 0, 0) != data.epoch_batches([2] * 30, 4, 0, 1)


def test_variations_keep_what_makes_a_target(samples):
    copies = data.variations(samples, 3, 4, 0)
    assert copies[0] == samples
    assert len(copies) == 4
    for original, varied, again in zip(samples, copies[2], data.variations(samples, 3, 4, 0)[2], strict=True):
        assert torch.equal(varied.pixels, again.pixels)
        same = (original.pixels[-2] == original.pixels[-1]).all(0).sum()
        kept = (varied.pixels[-2] == varied.pixels[-1]).all(0).sum()
        assert kept >= same  # the background is still a copy of the target's
        assert not torch.equal(varied.pixels, original.pixels)


def test_codes_are_those_of_each_picture(samples, pixels):
    codebook = PatchCodebook.fit(TINY, pixels)
    encoded = data.encode(samples, codebook, HashedWords(TextConfig()))
    assert encoded[3].references == 2
    target = data.as_float(samples[3].pixels[-1:])
    assert torch.equal(encoded[3].picture, codebook.encode(target)[0])


def test_more_references_than_the_model_takes(shards):
    with pytest.raises(UserError, match="2 references, the model takes up to 1"):
        data.read_resized(str(shards / "test-*.tar"), 32, 1)
