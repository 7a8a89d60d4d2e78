"""Training that starts from a model folder: weights and tokenizer are those of the folder."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from small.run import tiny_config

from data_schemas.errors import UserError
from tokenar.config import PRESETS, with_changes
from tokenar.encoders.fitted import load_fitted
from tokenar.model import folder
from tokenar.train.loop import train_model


def test_weights_and_tokenizer_come_from_the_folder(trained, shards, tmp_path):
    started = tiny_config(shards, tmp_path / "run", start_from=str(trained / "model"), steps=1, lr=1e-9, seed=5)
    train_model(started)
    before, after = (load_file(path / "model/model.safetensors") for path in (trained, tmp_path / "run"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert (tmp_path / "run/tokenizer.safetensors").read_bytes() == (trained / "tokenizer.safetensors").read_bytes()


def test_a_tokenizer_of_other_tokens_is_refused(trained, shards, tmp_path):
    """Of as many tokens, so that the weights fit."""
    config = tiny_config(shards, tmp_path / "run", start_from=str(trained / "model"), steps=1)
    other = {"image_size": 32, "patch": 8, "vocabulary": 16, "latents": 4}
    with pytest.raises(
        UserError,
        match=r"model/tokenizer.safetensors: a tokenizer of {.*}, the settings have {.*'latents': 4.*set tokenizer so",
    ):
        train_model(with_changes(config, tokenizer=other))


def test_a_fitted_tokenizer_serves_pictures_of_another_size(trained, shards, tmp_path):
    file = trained / "tokenizer.safetensors"
    config = tiny_config(shards, tmp_path / "run", tokenizer_weights=str(file), steps=1)
    train_model(with_changes(config, tokenizer__image_size=16, model__grid=2))
    made = load_fitted(tmp_path / "run/tokenizer.safetensors")
    assert torch.equal(made.codes, load_fitted(file).codes)
    assert (made.image_size, made.grid) == (16, 2)


def test_a_folder_without_a_model_is_refused(shards, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        train_model(tiny_config(shards, tmp_path / "run", start_from=str(tmp_path / "nowhere")))


def test_the_packaged_start_is_named_so(trained, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "START", trained / "model")
    summary = train_model(tiny_config(shards, tmp_path / "run", start_from="packaged", steps=1))
    assert summary["finished"]


def test_the_packaged_start_is_the_presets_and_what_its_card_says():
    """The digests in the card are those of its files, and the preset's model fits them."""
    import hashlib

    card = (folder.START / "README.md").read_text()
    for name in folder.FILES:
        assert hashlib.sha256((folder.START / name).read_bytes()).hexdigest() in card
    assert sum(path.stat().st_size for path in folder.START.iterdir()) < 12_000_000
    model, preset = folder.load_model(folder.START), PRESETS["cpu_quick"]()
    assert model.net.config == preset.model
    assert preset.start_from == "packaged"
    tokenizer = load_fitted(folder.START / "tokenizer.safetensors")
    assert tokenizer.config.model_dump(exclude={"steps"}) == preset.tokenizer.model_dump(exclude={"steps"})


def test_a_start_that_is_not_installed_is_one_line(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "START", tmp_path / "away")
    with pytest.raises(UserError, match=r"away.*make pretrain"):
        train_model(tiny_config(shards, tmp_path / "run", start_from="packaged"))
    shutil.rmtree(tmp_path / "run")
