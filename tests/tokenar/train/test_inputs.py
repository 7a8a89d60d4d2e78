"""Tokenizer, text, the order of the data, and training on shards that were encoded before."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small.run import make_sample, rows, tiny_config, weights, write_shard
from tiny.encoders import TINY_VQ, save_tiny_dinov2, save_tiny_t5, tiny_vq

from data_schemas.errors import UserError
from tokenar.config import TrainConfig, with_changes
from tokenar.data.encode import EncodeConfig, encode_shards
from tokenar.data.samples import (
    Order,
    Position,
    as_float,
    encode_resized,
    epoch_batches,
    rank_share,
    read_resized,
    variations,
)
from tokenar.encoders.config import TextConfig, TokenizerConfig
from tokenar.encoders.patches import PatchCodebook, picture_tensor, tensor_picture
from tokenar.encoders.text import HashedWords, word_vector, words
from tokenar.processes import Workers
from tokenar.train import checkpoint, inputs
from tokenar.train.loop import train_model

TINY = TokenizerConfig(image_size=32, patch=4, vocabulary=16)


@pytest.fixture(scope="module")
def samples(shards):
    return read_resized(str(shards / "train-*.tar"), 32, 2)


@pytest.fixture(scope="module")
def pixels(samples):
    return as_float(torch.cat([sample.pixels for sample in samples]))


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
    features = encoder.encode_with_mask(["one two three four", "Two"])[0]
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
    batches = epoch_batches(references, batch, seed, epoch)
    assert batches == epoch_batches(references, batch, seed, epoch)
    seen = []
    for chosen in batches:
        assert len({references[i] for i in chosen}) == 1
        assert len(chosen) <= batch
        for rank in range(world):
            seen += rank_share(chosen, rank, world)
    assert sorted(seen) == list(range(len(references)))


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 20), batch=st.integers(1, 6), seed=st.integers(0, 9), stop=st.integers(0, 30))
def test_order_continues_from_its_position(count, batch, seed, stop):
    whole = Order([2] * count, batch, seed)
    expected = [whole.next() for _ in range(stop + 10)]
    first = Order([2] * count, batch, seed)
    head = [first.next() for _ in range(stop)]
    resumed = Order([2] * count, batch, seed, Position(first.position.epoch, first.position.batch))
    assert head + [resumed.next() for _ in range(10)] == expected


def test_epochs_differ():
    assert epoch_batches([2] * 30, 4, 0, 0) != epoch_batches([2] * 30, 4, 0, 1)


def test_variations_keep_what_makes_a_target(samples):
    copies = variations(samples, 3, 4, 0)
    assert copies[0] == samples
    assert len(copies) == 4
    for original, varied, again in zip(samples, copies[2], variations(samples, 3, 4, 0)[2], strict=True):
        assert torch.equal(varied.pixels, again.pixels)
        same = (original.pixels[-2] == original.pixels[-1]).all(0).sum()
        kept = (varied.pixels[-2] == varied.pixels[-1]).all(0).sum()
        assert kept >= same  # the background is still a copy of the target's
        assert not torch.equal(varied.pixels, original.pixels)


def test_codes_are_those_of_each_picture(samples, pixels):
    codebook = PatchCodebook.fit(TINY, pixels)
    encoded = encode_resized(samples, codebook, HashedWords(TextConfig()))
    assert encoded[3].references == 2
    target = as_float(samples[3].pixels[-1:])
    assert torch.equal(encoded[3].picture, codebook.encode(target)[0])


def test_more_references_than_the_model_takes(shards):
    with pytest.raises(UserError, match="2 references, the model takes up to 1"):
        read_resized(str(shards / "test-*.tar"), 32, 1)


def test_words_are_told_from_padding():
    _, mask = HashedWords(TextConfig(tokens=3, width=8)).encode_with_mask(["one two", ""])
    assert mask.tolist() == [[True, True, False], [False, False, False]]


# Encoded shards


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Files of tiny frozen encoders: pictures of 8 pixels are 4 x 4 tokens, the teacher sees 2 x 2 patches."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("frozen")
    save_file(tiny_vq().state_dict(), folder / "vq.safetensors")
    save_tiny_t5(folder / "t5")
    save_tiny_dinov2(folder / "dinov2", width=768, patch=112)
    return folder


@pytest.fixture(scope="module")
def sets(shards, frozen, tmp_path_factory):
    """Folders of the same samples: raw, encoded, and encoded with the captions' padding."""
    folder = tmp_path_factory.mktemp("sets")
    for name, keep_padding in (("encoded", False), ("padded", True)):
        encode_shards(encode_config(frozen, shards, folder / name, keep_padding=keep_padding))
    return {"raw": shards, "encoded": folder / "encoded", "padded": folder / "padded"}


def encode_config(frozen, shards, out, **changes):
    return EncodeConfig(
        shards=f"{shards}/*.tar", out=str(out), vq=str(frozen / "vq.safetensors"), vq_config=TINY_VQ,
        text={"model": str(frozen / "t5"), "tokens": 40}, teacher={"model": str(frozen / "dinov2")},
        **{"image_size": 8, **changes},
    )  # fmt: skip


def frozen_config(frozen, shards, out, **changes):
    """A run with the frozen encoders, distillation too."""
    config = tiny_config(shards, out)
    model = config.model.model_dump() | {
        "vocabulary": 64, "text_tokens": 40, "text_width": 16, "text_padding": "masked", "distill": "dinov2",
    }  # fmt: skip
    values = config.model_dump() | {
        "model": model, "tokenizer": TINY_VQ.model_dump(), "tokenizer_weights": str(frozen / "vq.safetensors"),
        "text": {"model": str(frozen / "t5"), "tokens": 40}, "teacher": {"model": str(frozen / "dinov2")},
        "variations": 0,
    }  # fmt: skip
    return with_changes(TrainConfig.model_validate(values), **changes)


@pytest.mark.parametrize(("kind", "padding"), [("encoded", "masked"), ("padded", "attended")])
@pytest.mark.slow
def test_encoded_shards_give_the_losses_of_raw_ones(kind, padding, frozen, sets, tmp_path):
    found, shards = {}, {}
    for name in ("raw", kind):
        shards[name] = train_model(frozen_config(frozen, sets[name], tmp_path / name, model__text_padding=padding))[
            "shards"
        ]
        found[name] = [
            {key: row[key] for key in ("loss", "loss_teacher", "grad_norm")} for row in rows(tmp_path / name)[1:-1]
        ]
    assert len(found["raw"]) == 6
    files = sorted(sets["raw"].glob("train-*.tar"))
    assert shards["raw"] == shards[kind]
    assert [shard["sha256"] for shard in shards[kind]] == [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    for one, other in zip(found["raw"], found[kind], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    assert weights(tmp_path / kind).keys() == weights(tmp_path / "raw").keys()


@pytest.mark.slow
def test_encoded_sets_are_mixed_as_raw_ones_are(frozen, sets, tmp_path):
    write_shard(tmp_path / "more/train-00000.tar", [make_sample(n, side=32) for n in range(90, 94)])
    encode_shards(encode_config(frozen, tmp_path / "more", tmp_path / "more-encoded"))
    losses = {}
    for name, more in (("raw", "more"), ("encoded", "more-encoded")):
        also = (f"{tmp_path / more}/train-*.tar",)
        train_model(frozen_config(frozen, sets[name], tmp_path / name, also=also, weights=(1.0, 3.0)))
        losses[name] = [row["loss"] for row in rows(tmp_path / name)[1:-1]]
    assert losses["encoded"] == pytest.approx(losses["raw"], rel=1e-5)
    alone = frozen_config(frozen, sets["encoded"], tmp_path / "alone")
    train_model(alone)
    assert losses["encoded"] != pytest.approx([row["loss"] for row in rows(tmp_path / "alone")[1:-1]], rel=1e-3)


def test_a_run_on_encoded_shards_goes_on_where_it_was(frozen, sets, tmp_path):
    config = frozen_config(frozen, sets["encoded"], tmp_path / "whole", pictures_every=4)
    train_model(config)
    assert (tmp_path / "whole" / "pictures" / "step-000004.png").exists()
    parts = with_changes(config, out=str(tmp_path / "parts"), steps=4)
    train_model(parts)
    train_model(with_changes(parts, steps=6), resume=True)
    assert all(torch.equal(t, weights(tmp_path / "parts")[name]) for name, t in weights(tmp_path / "whole").items())


def test_without_the_encoders_the_shards_are_taken_as_they_are(frozen, sets, tmp_path, capsys):
    config = frozen_config(
        frozen, sets["encoded"], tmp_path / "run", tokenizer_weights=None, text__model=str(tmp_path / "none"), steps=1
    )
    train_model(config)
    assert "text encoder not compared with the shards'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model" / "tokenizer.safetensors").exists()


def test_encoders_that_are_only_compared_stay_off_the_gpu(frozen, sets, tmp_path, monkeypatch):
    placed = []
    for kind in (inputs.T5Encoder, inputs.Teacher):
        monkeypatch.setattr(
            inputs,
            kind.__name__,
            lambda config, device, kind=kind: (placed.append(str(device)), kind(config, "cpu"))[1],
        )
    config = frozen_config(frozen, sets["encoded"], tmp_path / "run", tokenizer_weights=None)
    inputs.load_inputs(config, Workers(0, 1, torch.device("cuda")), tmp_path / "fitted", resumed=False)
    assert placed == ["cpu", "cpu"]


def test_shards_that_do_not_go_with_the_settings(frozen, sets, tmp_path):
    def refused(told, kind="encoded", **changes):
        with pytest.raises(UserError, match=told):
            train_model(frozen_config(frozen, sets[kind], tmp_path / "run", **changes), overwrite=True)

    refused("there is no encoder to make them", "raw", tokenizer_weights=None)
    refused("encoded without the captions' padding", model__text_padding="attended")
    refused("encoded with the captions' padding", "padded")
    refused("encoded with text_width 16, the model has 8", model__text_width=8)
    refused("encoded pictures cannot be varied", variations=1)
    larger = encode_config(frozen, sets["raw"], tmp_path / "larger", image_size=16)
    encode_shards(larger)
    refused(r"larger/test-\*.tar: encoded with image_tokens 64", val_shards=f"{tmp_path}/larger/test-*.tar")
    refused(r"larger/train-\*.tar: encoded with image_tokens 64", also=(f"{tmp_path}/larger/train-*.tar",))
    save_tiny_dinov2(tmp_path / "narrow", width=384, patch=112)
    refused("teacher: 4 features of width 384 .* takes 4 of width 768", "raw", teacher__model=str(tmp_path / "narrow"))
    refused("is a raw shard and .* an encoded one", val_shards=str(sets["raw"] / "test-*.tar"))
    save_file(tiny_vq(seed=1).state_dict(), tmp_path / "other.safetensors")
    refused("encoded with tokenizer", tokenizer_weights=str(tmp_path / "other.safetensors"))
    save_tiny_t5(tmp_path / "t5", seed=1)
    refused("encoded with text", text__model=str(tmp_path / "t5"))
    with pytest.raises(UserError, match="set tokenizer and text so"):
        train_model(tiny_config(sets["encoded"], tmp_path / "run"), overwrite=True)


def test_more_references_in_encoded_shards_than_the_model_takes(frozen, tmp_path):
    write_shard(tmp_path / "raw" / "train-0.tar", [make_sample(i, side=64, references=2 + i) for i in range(2)])
    encode_shards(encode_config(frozen, tmp_path / "raw", tmp_path / "encoded"))
    config = frozen_config(frozen, tmp_path / "encoded", tmp_path / "run", val_shards=None)
    with pytest.raises(UserError, match="3 references, the model takes up to 2"):
        train_model(config)


def test_a_shard_that_vanishes_leaves_the_last_good_checkpoint(frozen, sets, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(sets["encoded"], folder)
    config = frozen_config(frozen, folder, tmp_path / "run", steps=400, save_every=2, val_shards=None, log_every=2)

    def remove(row):
        if row["step"] == 2:
            (folder / "train-00001.tar").unlink()

    with pytest.raises(UserError, match=r"train-00001.tar: no such shard"):
        train_model(config, remove)
    assert checkpoint.checkpoints(tmp_path / "run")
    shutil.copy(sets["encoded"] / "train-00001.tar", folder)
    done = rows(tmp_path / "run")[-1]["step"]
    assert train_model(with_changes(config, steps=done + 4), resume=True)["finished"]
