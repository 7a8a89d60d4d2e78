"""Published checkpoints: what fits is loaded, what does not fit is named."""

import argparse
import json
import math
import os

import pytest
import torch
from safetensors.torch import save_file
from small.run import SMALL, changed, inputs, random_net

from data_schemas.errors import UserError
from tokenar.model.published import NEW_KEYS, load_published
from tokenar.model.transformer import TokenAR


def stored(net, path, key="model", **more):
    torch.save({key: net.state_dict(), **more}, path)
    return path


@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_a_trainers_checkpoint(tmp_path, key):
    """The released trainer stores its command line and its optimiser beside the weights."""
    net, other = random_net(), random_net(seed=1)
    more = {"args": argparse.Namespace(image_size=512), "steps": 7, "optimizer": {"state": {}}}
    assert load_published(other, stored(net, tmp_path / "weights.pt", key, **more)) == []
    assert torch.equal(other(*inputs()), net(*inputs()))


def test_weights_alone_and_safetensors(tmp_path):
    net = random_net()
    torch.save(net.state_dict(), tmp_path / "alone.pt")
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    for name in ("alone.pt", "weights.safetensors"):
        other = random_net(seed=1)
        assert load_published(other, tmp_path / name) == []
        assert torch.equal(other.output.weight, net.output.weight)


def test_half_precision_is_widened(tmp_path):
    net = random_net().half()
    other = random_net(seed=1)
    load_published(other, stored(net, tmp_path / "half.pt"))
    assert other.output.weight.dtype == torch.float32
    assert torch.equal(other.output.weight, net.output.weight.float())


def test_a_text_to_image_checkpoint_leaves_the_new_keys_as_they_were(tmp_path):
    config = changed(distill="dinov2")
    llamagen = {name: value for name, value in random_net(config).state_dict().items() if name not in NEW_KEYS}
    torch.save({"model": llamagen}, tmp_path / "t2i.pt")
    net = random_net(config, seed=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert set(load_published(net, tmp_path / "t2i.pt")) == NEW_KEYS & before.keys()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name] if name in NEW_KEYS else llamagen[name]), name


def test_what_sampling_and_distilling_left_is_put_aside(tmp_path):
    net = random_net(changed(distill="dinov2"))
    weights = net.state_dict() | {"layers.1.attention.kv_cache.k_cache": torch.zeros(2, 2)}
    torch.save({"model": weights}, tmp_path / "weights.pt")
    other = random_net(seed=1)
    assert load_published(other, tmp_path / "weights.pt") == []
    assert torch.equal(other.norm.weight, net.norm.weight)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w | {"norm.weight": torch.zeros(32)}, r"norm\.weight is \[32\], in this model \[16\]"),
        (lambda w: {k: v for k, v in w.items() if k != "output.weight"}, r"output\.weight \[11, 16\] is missing"),
        (lambda w: w | {"freqs": torch.zeros(1)}, "freqs is not a key of this model"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, change, complaint):
    net = random_net()
    before = net.tok_embeddings.weight.clone()
    torch.save({"model": change(random_net(seed=1).state_dict())}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=complaint):
        load_published(net, tmp_path / "weights.pt")
    assert torch.equal(net.tok_embeddings.weight, before)


def test_another_size_is_named(tmp_path):
    with torch.device("meta"):
        names = TokenAR(changed(layers=36)).state_dict()
    weights = {name: torch.zeros(value.shape) for name, value in names.items()} | {"norm.weight": torch.zeros(1280)}
    torch.save({"model": weights}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"use the model it was made for \(size XL\)"):
        load_published(random_net(), tmp_path / "weights.pt")


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_that_are_no_checkpoints(tmp_path):
    net = random_net()
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    torch.save({"model": {"norm.weight": Harmful(tmp_path / "made by the file")}}, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    for name in ("text.pt", "text.safetensors", "code.pt", "other.pt", "absent.pt", "absent.safetensors"):
        with pytest.raises(UserError, match=name) as caught:
            load_published(net, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    with pytest.raises(UserError, match=r"code\.pt: .*it holds code, [\w.]+, which is not run"):
        load_published(net, tmp_path / "code.pt")
    assert not (tmp_path / "made by the file").exists()


@pytest.mark.parametrize("name", ["pipe.pt", "pipe.safetensors"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: is a pipe"):
        load_published(random_net(), tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value, tmp_path):
    weights = {name: tensor.clone() for name, tensor in random_net().state_dict().items()}
    weights["layers.1.attention.wo.weight"][3, 4] = value
    torch.save({"model": weights}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt: layers\.1\.attention\.wo\.weight holds NaN or infinity"):
        load_published(random_net(), tmp_path / "c.pt")
    folder = tmp_path / "model"
    random_net().save_pretrained(folder)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: layers\.1\.attention\.wo\.weight holds NaN"):
        TokenAR.from_pretrained(folder)


def test_a_saved_model_is_the_same_model(tmp_path):
    net = random_net(changed(kv_heads=1, null_embeddings="frozen", text_padding="masked"))
    net.save_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert "library_name: tokenar" in (tmp_path / "model/README.md").read_text()
    loaded = TokenAR.from_pretrained(tmp_path / "model")
    assert loaded.config == net.config
    assert not loaded.training
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(loaded(*inputs(), text_mask=mask), net(*inputs(), text_mask=mask))


def test_model_folders_that_cannot_be_used(tmp_path):
    folder = tmp_path / "model"
    random_net().save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    for change, complaint in (
        ({"width": 32}, "img_uncond_embedding is"),
        ({"width": 33}, "must split into"),
        ({"colour": "red"}, "colour"),
    ):
        (folder / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=complaint):
            TokenAR.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        TokenAR.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        TokenAR.from_pretrained(folder)
    with pytest.raises(UserError, match="no model to load"):
        TokenAR.from_pretrained(tmp_path / "no" / "such" / "folder")


def test_a_push_sends_the_three_files(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    sent = {}

    class Created:
        repo_id = "team/tokenar"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **options: Created())
    monkeypatch.setattr(
        HfApi, "upload_folder",
        lambda self, *, repo_id, folder_path, **options: sent.update(
            {repo_id: sorted(path.name for path in folder_path.iterdir())}
        ),
    )  # fmt: skip
    random_net().push_to_hub("team/tokenar")
    assert sent == {"team/tokenar": ["README.md", "config.json", "model.safetensors"]}


def test_the_hub_class_changes_nothing_about_the_model():
    net = random_net()
    assert net.config is not None
    assert net.config == SMALL
    assert TokenAR(config=SMALL).config == SMALL
