"""The VQ tokenizer for small patches: what it promises, its file, and where settings choose it."""

import pytest
import torch
from small.run import make_sample, photo, random_net, tiny_config

from data_schemas.errors import UserError
from tokenar.config import TrainConfig, with_changes
from tokenar.encoders.config import PatchVqConfig, TextConfig, TokenizerConfig
from tokenar.encoders.fitted import fit_tokenizer, load_fitted
from tokenar.encoders.patch_vq import PatchNetwork, PatchVq
from tokenar.encoders.patches import PatchCodebook, patches_of, picture_tensor
from tokenar.model.config import ModelConfig
from tokenar.model.folder import load_model, save_model

TINY = PatchVqConfig(image_size=32, patch=4, vocabulary=64, latents=16, width=64, steps=120)


@pytest.fixture(scope="module")
def pictures():
    targets = [picture_tensor(make_sample(i, side=64).target, 32) for i in range(6)]
    return torch.stack([*targets, *(picture_tensor(photo(name), 32) for name in ("coffee", "chelsea"))])


@pytest.fixture(scope="module")
def fitted(pictures) -> PatchVq:
    return fit_tokenizer(TINY, pictures)


def test_codes_are_drawn_nearer_to_the_picture_than_the_patch_codebook_draws_them(fitted, pictures):
    codebook = fit_tokenizer(TokenizerConfig(image_size=32, patch=4, vocabulary=64), pictures)
    assert isinstance(codebook, PatchCodebook)

    def error(tokenizer):
        return (tokenizer.decode(tokenizer.encode(pictures)) - pictures).square().mean().item()

    assert error(fitted) < error(codebook)
    codes = fitted.encode(pictures)
    assert (codes.shape, codes.dtype, int(codes.max()) < 64) == ((8, 64), torch.int64, True)
    assert len(codes.unique()) > 32
    assert (fitted.grid, fitted.image_size, fitted.vocabulary) == (8, 32, 64)
    assert fitted.decode(codes).abs().max() <= 1


def test_before_the_first_step_it_draws_principal_components():
    network = PatchNetwork(TINY)
    network.components.copy_(torch.linalg.qr(torch.randn(48, 48)).Q[:16])
    pixels = torch.rand(2, 3, 32, 32)
    patches = patches_of(pixels, 4)
    latents = network.latents(patches)
    torch.testing.assert_close(latents, patches @ network.components.T)
    drawn = patches_of(network.pixels(latents, 8), 4)
    torch.testing.assert_close(drawn, latents @ network.components, atol=1e-5, rtol=1e-5)


def test_equal_patches_have_equal_codes(fitted, pictures):
    moved = torch.roll(pictures, (8, 4), dims=(2, 3))
    codes = fitted.encode(pictures).unflatten(1, (8, 8))
    assert torch.equal(fitted.encode(moved).unflatten(1, (8, 8)), torch.roll(codes, (2, 1), dims=(1, 2)))


def test_what_the_sources_show_is_drawn_from_them(fitted, pictures):
    """A picture composed of its sources token by token is nearer to the truth with them at hand."""
    sources = pictures[:3].clone()
    composed = sources[2].clone()
    composed[:, :16, 4:20] = sources[0][:, 8:24, 8:24]
    codes = fitted.encode(composed[None])
    plain, borrowed = fitted.decode(codes)[0], fitted.decode(codes, sources[None])[0]
    assert (borrowed - composed).square().mean() < 0.7 * (plain - composed).square().mean()
    latents, _ = fitted._described(sources)
    used = fitted._borrowed(codes[0], fitted.codes[codes[0]], sources).unflatten(0, (8, 8))
    assert torch.equal(used[5, 5], latents[2].unflatten(0, (8, 8))[5, 5]), "the background's own, in its place"
    assert torch.equal(used[2, 3], latents[0].unflatten(0, (8, 8))[4, 4]), "where most codes around are the same"
    both = fitted.decode(codes.repeat(2, 1), torch.stack([sources, sources.flip(0)]))
    torch.testing.assert_close(both[0], borrowed)


def test_a_code_that_no_source_has_is_drawn_as_it_is(fitted, pictures):
    codes = fitted.encode(pictures[:1])
    white = torch.ones(1, 2, 3, 32, 32)
    known = fitted.encode(white[0])
    other = torch.where(torch.isin(codes, known), (known.max() + 1) % 64, codes)
    torch.testing.assert_close(fitted.decode(other, white), fitted.decode(other))


def test_the_same_pictures_and_seed_fit_the_same(fitted, pictures):
    state = torch.random.get_rng_state()
    again = fit_tokenizer(TINY, pictures)
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, other in zip(fitted.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(fit_tokenizer(TINY.model_copy(update={"seed": 1}), pictures).codes, fitted.codes)


def test_a_file_holds_all_of_it(fitted, pictures, tmp_path):
    fitted.save(tmp_path / "t.safetensors")
    loaded = load_fitted(tmp_path / "t.safetensors")
    assert isinstance(loaded, PatchVq)
    assert loaded.config == TINY
    codes = fitted.encode(pictures)
    assert torch.equal(loaded.encode(pictures), codes)
    assert torch.equal(loaded.decode(codes), fitted.decode(codes))
    (tmp_path / "cut").write_bytes((tmp_path / "t.safetensors").read_bytes()[:-9])
    for name, told in (("cut", "not a whole tokenizer file"), ("none", "none")):
        with pytest.raises(UserError, match=told):
            load_fitted(tmp_path / name)
    fitted.network.codes[3, 4], before = float("nan"), fitted.network.codes[3, 4].clone()
    fitted.save(tmp_path / "nan.safetensors")
    fitted.network.codes[3, 4] = before
    with pytest.raises(UserError, match="codes holds NaN"):
        load_fitted(tmp_path / "nan.safetensors")


def test_too_few_patches():
    with pytest.raises(UserError, match="hold 1 different patches"):
        fit_tokenizer(TINY, torch.zeros(2, 3, 32, 32))


def test_settings_with_latents_mean_this_tokenizer(tmp_path):
    plain = tiny_config(tmp_path, tmp_path)
    changed = with_changes(plain, tokenizer=TINY.model_dump() | {"patch": 8, "vocabulary": 16})
    for config in (changed, TrainConfig.model_validate_json(changed.model_dump_json())):
        assert type(config.tokenizer) is PatchVqConfig
        assert config.tokenizer.latents == 16
    assert type(TrainConfig.model_validate_json(plain.model_dump_json()).tokenizer) is TokenizerConfig
    assert changed.image_size == 32


def test_a_model_folder_holds_it(fitted, pictures, tmp_path):
    model = ModelConfig(
        layers=1, heads=2, width=16, vocabulary=64, grid=8, text_tokens=4, text_width=8, instruct_tokens=2
    )
    save_model(tmp_path, random_net(model), fitted, TextConfig(tokens=4, width=8))
    read = load_model(tmp_path).tokenizer
    assert torch.equal(read.encode(pictures), fitted.encode(pictures))
