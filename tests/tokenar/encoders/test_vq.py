"""LlamaGen's VQ tokenizers against the published program's numbers, and what we add around them."""

import argparse
import importlib.util

import golden
import pytest
import torch
from safetensors.torch import save_file
from tiny.encoders import TINY_VQ, tiny_vq

from data_schemas.errors import UserError
from tokenar.data.samples import as_float, encode_resized, read_resized
from tokenar.encoders import vq
from tokenar.encoders.config import TextConfig, VqConfig
from tokenar.encoders.text import HashedWords
from tokenar.encoders.vq import VqNetwork, VqTokenizer, load_network


def key_cases():
    """The cases of VQ networks among all lists of keys."""
    found = golden.cases("tokenar/keys", "state_dict_keys")
    return [c for c in found if c.values[0] is None or "ch_mult" in golden.read(c.values[0])["model"]]


def number_cases():
    """Those of full size marked slow."""
    found = golden.cases("tokenar/vq", "vq")
    large = [c.values[0] is not None and golden.read(c.values[0])["base_channels"] >= 128 for c in found]
    return [
        pytest.param(*c.values, id=c.id, marks=pytest.mark.slow) if big else c
        for c, big in zip(found, large, strict=True)
    ]


def test_golden_data_is_there():
    golden.check_present("tokenar", "vq", "state_dict_keys")


@pytest.mark.parametrize("case", key_cases())
def test_state_dict(case):
    values = golden.read(case)
    model = values["model"]
    names = ("ch_mult", "z_channels", "codebook_size", "codebook_embed_dim")
    config = VqConfig(base_channels=model["ch"], **{name: model[name] for name in names})
    with torch.device("meta"):
        network = VqNetwork(config)
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == values["keys"]
    assert sum(parameter.numel() for parameter in network.parameters()) == model["num_parameters"]
    assert [name for name, _ in network.named_buffers()] == model["buffers"]


def test_the_presets_are_llamagens():
    sizes = {"z_channels": 256, "codebook_size": 16384, "codebook_embed_dim": 8, "base_channels": 128}
    assert vq.vq16() == VqConfig(ch_mult=(1, 1, 2, 2, 4), **sizes)
    assert vq.vq8() == VqConfig(ch_mult=(1, 2, 2, 4), **sizes)


def recipe(case):
    spec = importlib.util.spec_from_file_location("recipe", golden.near(case, "recipe.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_network(case, values) -> VqNetwork:
    value = recipe(case).value
    made = {name: torch.from_numpy(value(name, tuple(s), values["salt"])) for name, s in values["keys"].items()}
    for name, probe in values["recipe_probes"].items():
        torch.testing.assert_close(made[name].flatten()[:8].tolist(), probe["first8"], rtol=0, atol=0)
    assert values["l2_norm"]
    with torch.device("meta"):
        network = VqNetwork(VqConfig(**{name: values[name] for name in VqConfig.model_fields}))
    network.load_state_dict(made, assign=True)
    return network.eval()


@pytest.mark.parametrize("case", number_cases())
@torch.no_grad()
def test_published_numbers(case):
    values, stored = golden.read(case), golden.tensors(case)
    network = golden_network(case, values)
    for part in values["cases"]:
        expected = {k.split("/", 1)[1]: v for k, v in stored.items() if k.startswith(part["case"] + "/")}
        check_part(network, part, expected, values["tolerance"])


def check_part(network, part, expected, tolerance):
    height, width = part["latent_hw"]
    bytes_ = expected.get("image_u8")
    if bytes_ is None:
        pictures = torch.full(part["shape"], 1.0 if "white" in part["image"] else 0.0)
    else:
        pictures = (bytes_.float() / 255 - 0.5) / 0.5
    latents, codes = network.latents(pictures), network.encode(pictures)
    torch.testing.assert_close(latents, expected["latent_before_normalise"], **tolerance["latent"])
    certain = expected["index_margin"] > 1e-4
    assert torch.equal(codes[certain], expected["expected_indices"].long()[certain])
    own = expected["expected_indices"].long()
    torch.testing.assert_close(
        network.quantize.lookup(own, height, width), expected["expected_quantised"], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        network.decode(own, height, width), expected["expected_decoded_own"], **tolerance["decoded"]
    )
    drawn = network.decode(expected["decode_indices_random"].long(), height, width)
    torch.testing.assert_close(drawn, expected["expected_decoded_random"], **tolerance["decoded"])


# The tokenizer


@pytest.fixture
def pictures():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_one_picture_has_the_same_codes_alone_and_in_a_batch(pictures):
    network = tiny_vq()
    codes = VqTokenizer(network, 16, batch=2).encode(pictures)
    assert codes.shape == (5, 64)
    assert codes.dtype == torch.int64
    assert codes.unique().numel() > 8
    assert torch.equal(codes, torch.cat([network.encode(picture[None]) for picture in pictures]))


def test_decoding(pictures):
    network = tiny_vq()
    tokenizer = VqTokenizer(network, 16, batch=2)
    codes = torch.randint(64, (5, 64), generator=torch.Generator().manual_seed(2))
    drawn = tokenizer.decode(codes)
    assert drawn.shape == pictures.shape
    torch.testing.assert_close(drawn, network.decode(codes, 8, 8), rtol=0, atol=1e-5)
    half = VqTokenizer(network, 16, decode_dtype=torch.bfloat16).decode(codes)
    assert half.dtype == torch.float32
    assert 0 < (half - drawn).abs().max() < 0.05 * drawn.abs().max()
    assert torch.equal(tokenizer.decode(codes), drawn)  # the weights themselves stay float32


def test_codes_are_the_nearest_in_raster_order(monkeypatch):
    monkeypatch.setattr(vq, "SEARCH_ROWS", 7)  # blocks that end inside a picture
    quantiser = tiny_vq().quantize
    latents = torch.randn(3, 8, 2, 5, generator=torch.Generator().manual_seed(3))
    rows = latents.permute(0, 2, 3, 1).reshape(30, 8)
    rows = rows / rows.norm(dim=1, keepdim=True)
    codes = quantiser.embedding.weight / quantiser.embedding.weight.norm(dim=1, keepdim=True)
    assert torch.equal(quantiser.nearest(latents), torch.cdist(rows, codes).argmin(1).view(3, 10))
    found = torch.arange(10)[None] * 6
    assert torch.equal(quantiser.nearest(3 * quantiser.lookup(found, 2, 5)), found)


def test_shards_are_encoded_with_it(shards):
    samples = read_resized(str(shards / "train-*.tar"), 16, 2)
    tokenizer = VqTokenizer(tiny_vq(), 16)
    encoded = encode_resized(samples, tokenizer, HashedWords(TextConfig()))
    assert len(encoded) == 10
    assert encoded[3].sources.shape == (3, tokenizer.grid**2)
    assert torch.equal(encoded[3].picture, tokenizer.encode(as_float(samples[3].pixels[-1:]))[0])


def test_a_side_that_no_grid_fits():
    with pytest.raises(UserError, match="image_size 17 must be a multiple of 2"):
        VqTokenizer(tiny_vq(), 17)


# Files


def test_both_kinds_of_file_hold_the_same_tokenizer(tmp_path, pictures):
    network = tiny_vq()
    torch.save({"model": network.state_dict(), "args": argparse.Namespace(lr=1e-4), "steps": 7}, tmp_path / "vq.pt")
    save_file(network.state_dict(), tmp_path / "vq.safetensors")
    state = torch.get_rng_state()
    loaded = [VqTokenizer(load_network(tmp_path / name, TINY_VQ), 16) for name in ("vq.pt", "vq.safetensors")]
    assert torch.equal(torch.get_rng_state(), state)
    for tokenizer in loaded:
        assert torch.equal(tokenizer.encode(pictures), VqTokenizer(network, 16).encode(pictures))
        assert tokenizer.fingerprint == VqTokenizer(network, 16).fingerprint
    assert VqTokenizer(tiny_vq(seed=1), 16).fingerprint != loaded[0].fingerprint


def test_half_precision_weights_are_read_as_float32(tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in tiny_vq().state_dict().items()}
    save_file(half, tmp_path / "vq.safetensors")
    assert {tensor.dtype for tensor in load_network(tmp_path / "vq.safetensors", TINY_VQ).state_dict().values()} == {
        torch.float32
    }


def test_weights_of_another_tokenizer(tmp_path):
    save_file(tiny_vq().state_dict(), tmp_path / "vq.safetensors")
    with pytest.raises(UserError, match=r"ch_mult \[1, 1, 2, 2, 4\]: tensors \d+ missing \(decoder"):
        load_network(tmp_path / "vq.safetensors", vq.vq16())
    with pytest.raises(UserError, match=r"of another shape \(quantize.embedding.weight\)"):
        load_network(tmp_path / "vq.safetensors", TINY_VQ.model_copy(update={"codebook_size": 65}))


class Trap:
    def __reduce__(self):
        return (print, ("sprung",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Trap()}, "not a readable file of weights .it holds code, [a-z_.]*print, which is not run"),
        ({"state_dict": {}}, "no weights under 'model'"),
        ([1, 2], "no weights under 'model'"),
        ({"model": {"a": 1}}, "no weights under 'model'"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path, capsys, content, message):
    torch.save(content, tmp_path / "vq.pt")
    with pytest.raises(UserError, match=rf"vq.pt: {message}"):
        load_network(tmp_path / "vq.pt", TINY_VQ)
    assert "sprung" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vq.pt", "vq.safetensors"])
def test_files_that_are_missing_or_cut(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        load_network(tmp_path / name, TINY_VQ)
    torch.save({"model": tiny_vq().state_dict()}, tmp_path / "whole")
    (tmp_path / name).write_bytes((tmp_path / "whole").read_bytes()[:5000])
    with pytest.raises(UserError, match=f"{name}: not a readable file of weights .*fetch the VQ checkpoint"):
        load_network(tmp_path / name, TINY_VQ)


def test_weights_that_are_no_numbers(tmp_path):
    weights = {name: tensor.clone() for name, tensor in tiny_vq().state_dict().items()}
    weights["decoder.conv_out.bias"][1] = torch.nan
    torch.save({"model": weights}, tmp_path / "vq.pt")
    with pytest.raises(UserError, match=r"vq\.pt: decoder\.conv_out\.bias holds NaN or infinity"):
        load_network(tmp_path / "vq.pt", TINY_VQ)
