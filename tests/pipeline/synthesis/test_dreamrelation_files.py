"""Model files that DreamRelation reads: what is taken, what is refused and in which words."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.sdxl import OLD_LORA, TinyModels, Widths, lay_out, lora, needs_tiny, open_clip_checkpoint, tiny_generator
from transformers import CLIPConfig, CLIPModel

from data_schemas.errors import UserError
from pipeline.synthesis.dreamrelation.adapter import load_adapter
from pipeline.synthesis.dreamrelation.generator import load_image_encoder, load_pipeline, variant_of
from pipeline.synthesis.dreamrelation.local_tokens import LocalEncoder, load_local_encoder
from pipeline.synthesis.dreamrelation.loras import read_lora
from pipeline.synthesis.dreamrelation.resampler import BOX_FEATURES

pytestmark = needs_tiny


def adapter_error(path, **changes):
    pipe = tiny_generator().pipe
    widths = Widths.of(pipe)
    with pytest.raises(UserError) as caught:
        load_adapter(
            path,
            pipe.unet,
            TinyModels.of().sizes,
            **({"image_width": widths.image, "phrase_width": widths.phrase} | changes),
        )
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def stored_adapter():
    return torch.load(TinyModels.of().adapter, weights_only=True)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({**stored_adapter(), "ms_adapter": Trap()}, tmp_path / "a.bin")
    assert "refused" in adapter_error(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(pickle.dumps(Trap()))
    adapter_error(tmp_path / "b.bin")
    assert not (tmp_path / "ran").exists()


def test_wrong_adapters_are_named(tmp_path):
    def save(change):
        stored = stored_adapter()
        change(stored)
        torch.save(stored, tmp_path / "x.bin")
        return tmp_path / "x.bin"

    assert "ms_adapter.3.to_k_ip.weight" in adapter_error(save(lambda s: s["ms_adapter"].pop("3.to_k_ip.weight")))
    extra = save(lambda s: s["image_proj"].update(more=torch.zeros(1)))
    assert "image_proj.more" in adapter_error(extra)
    assert "image_proj" in adapter_error(save(lambda s: s.pop("image_proj")))
    assert "holds" in adapter_error(save(lambda s: s.update(unet={})))
    assert "no tensor" in adapter_error(save(lambda s: s.update(dummy_image_tokens=3)))
    wide = adapter_error(TinyModels.of().adapter, image_width=1664)
    width, image = TinyModels.of().sizes.width, Widths.of(tiny_generator().pipe).image
    assert f"image_proj.proj_in.weight is {width} x {image}" in wide
    assert f"{width} x 1664" in wide
    grounding = 2 * (768 + BOX_FEATURES)
    assert f"{grounding} x {768 + BOX_FEATURES}" in adapter_error(TinyModels.of().adapter, phrase_width=768)
    (tmp_path / "half.bin").write_bytes(TinyModels.of().adapter.read_bytes()[:5000])
    adapter_error(tmp_path / "half.bin")
    (tmp_path / "half.safetensors").write_bytes(b"no tensors here")
    adapter_error(tmp_path / "half.safetensors")


def test_an_adapter_in_safetensors_is_the_same(tmp_path):
    stored = stored_adapter()
    flat = {f"{group}.{name}": t for group in ("image_proj", "ms_adapter") for name, t in stored[group].items()}
    save_file(flat | {"dummy_image_tokens": stored["dummy_image_tokens"]}, tmp_path / "ms_adapter.safetensors")
    generator = tiny_generator()
    widths = Widths.of(generator.pipe)
    made = load_adapter(
        tmp_path / "ms_adapter.safetensors", generator.pipe.unet, TinyModels.of().sizes, widths.image, widths.phrase
    )
    before = generator.adapter.state_dict()
    assert made.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_wrong_loras_are_named(tmp_path):
    unet, path = tiny_generator().pipe.unet, tmp_path / "lora.safetensors"
    stored = load_file(lora(OLD_LORA))
    name = next(n for n in stored if n.endswith("to_k.lora.down.weight"))

    def error(tensors):
        save_file(tensors, path)
        with pytest.raises(UserError) as caught:
            read_lora(path, unet)
        return str(caught.value)

    rank, width = stored[name].shape
    wrong = error({**stored, name: torch.zeros(rank, 2048)})
    assert f"{name} is {rank} x 2048, but this base has {width}" in wrong
    assert "no place for unet.nowhere.to_q" in error({"unet.nowhere.to_q.lora.down.weight": torch.zeros(4, 40)})
    assert "no place for text_encoder" in error({"text_encoder.q.lora.down.weight": torch.zeros(4, 16)})
    assert "holds nothing" in error({})
    path.write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="cannot be read"):
        read_lora(path, unet)


def test_files_of_the_float16_variant(tmp_path):
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).touch()
        expected = "fp16" if "fp16" in name else None
        assert (variant_of(tmp_path, torch.float16), variant_of(tmp_path, torch.float32)) == ("fp16", expected)


def test_the_image_encoder_comes_out_of_a_whole_clip_in_shards(tmp_path):
    """That is how the published one is stored."""
    tower = load_image_encoder(TinyModels.of().encoder, torch.float32)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=tower.config.to_dict(), text_config=text | {"vocab_size": 50}, projection_dim=20)
    whole = CLIPModel(config)
    whole.vision_model.load_state_dict(tower.state_dict())
    whole.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    found = load_image_encoder(tmp_path, torch.float32).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in tower.state_dict().items())


@torch.no_grad()
def test_the_local_encoder_reads_open_clips_names(tmp_path):
    tower = load_image_encoder(TinyModels.of().encoder, torch.float32)
    open_clip_checkpoint(tower, tmp_path / "epoch_6.pt")
    local = load_local_encoder(tmp_path / "epoch_6.pt", tower.config)
    side = tower.config.image_size
    assert local.side == 4 * side
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(local.tower(pixels).pooler_output, tower(pixels).pooler_output)


@torch.no_grad()
def test_local_tokens_are_means_of_cells_that_no_attention_has_mixed(tmp_path):
    tower = load_image_encoder(TinyModels.of().encoder, torch.float32)
    local = LocalEncoder(tower)
    pixels = torch.randn(2, 3, local.side, local.side, generator=torch.Generator().manual_seed(0))
    tokens, cell = local(pixels), tower.config.image_size // tower.config.patch_size  # tokens along a cell's side
    assert tokens.shape == (2, 16, tower.config.hidden_size)
    torch.testing.assert_close(tokens[1:], local(pixels[1:]), atol=1e-6, rtol=0)
    states = tower(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2][0, 1:]
    for column, row in ((0, 0), (2, 1), (3, 3)):
        xs, ys = (range(cell * at, cell * at + cell) for at in (column, row))
        members = [states[4 * cell * y + x] for y in ys for x in xs]
        expected = torch.stack([last_layer_alone(tower, state) for state in members]).mean(0)
        torch.testing.assert_close(tokens[0, 4 * column + row], expected, atol=1e-6, rtol=1e-5)


def last_layer_alone(tower, state):
    """One token [D] through the last layer as if it were the only one: attention to itself is its own value."""
    out = tower.post_layernorm(tower.encoder.layers[-1](state[None, None], None)[0].reshape(-1))
    return out / out.norm()


def test_models_that_are_something_else_are_named(tmp_path):
    with pytest.raises(UserError, match="CLIP image encoder"):
        load_image_encoder(tmp_path, torch.float32)
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match="SDXL base"):
        load_pipeline(tmp_path / "base", TinyModels.of().encoder, None, torch.float32)
    lay_out(tmp_path / "published")
    encoder = tmp_path / "published/encoder"
    tensors = load_file(encoder / "model.safetensors")
    tensors.pop(next(name for name in tensors if "layers.0" in name))
    save_file(tensors, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is missing"):
        load_image_encoder(encoder, torch.float32)
