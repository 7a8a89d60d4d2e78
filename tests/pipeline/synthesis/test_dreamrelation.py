"""DreamRelation as a stage: the true classes in the published file layout, on the golden data's tiny models."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny.sdxl import (
    LORA_FOLDER,
    TinyModels,
    Widths,
    lay_out,
    make_sample,
    needs_tiny,
    open_clip_checkpoint,
    tiny_generator,
)

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.schema import validate
from pipeline import models
from pipeline.synthesis.dreamrelation.attention import box_cells, grids
from pipeline.synthesis.dreamrelation.found import ANY, lora_file
from pipeline.synthesis.dreamrelation.generator import (
    Scene,
    Settings,
    load_image_encoder,
)
from pipeline.synthesis.dreamrelation.stage import DreamRelation, DreamRelationConfig

pytestmark = [needs_tiny, pytest.mark.usefixtures("one_thread")]
SETTINGS = Settings(steps=3, height=128, width=128, negative_prompt="lowres")
LATENT_NOISE = 2e-4
"""Most that latents (of magnitude 14) may differ for another order of the same float32 sums; 2.5e-5 was measured."""


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def stage(layout):
    return DreamRelation(DreamRelationConfig(**layout))


def pixels_of(files):
    return np.asarray(pictures.decode(files["target.png"], "target"), int)


def latents_of(stage, samples):
    """Latents by sample as the stage makes them, batch by batch."""
    made = {}
    stage.ready()
    for batch in stage.batches(samples):
        stage.generator.use_relation(batch[0].plan["relation"])
        latents = stage.generator.sample([stage._scene(s) for s in batch], stage._settings())
        made |= {s.sample_id: latent for s, latent in zip(batch, latents, strict=True)}
    return made


def test_a_part_of_two_relations_gets_its_pictures(stage, monkeypatch):
    seen, process = [], stage.process_batch

    def spy(batch):
        seen.append([s.sample_id for s in batch])
        return process(batch)

    monkeypatch.setattr(stage, "process_batch", spy)
    rows, files, _ = stage.run([make_sample(n) for n in "abcd"], {})
    assert [r["status"] for r in rows] == ["ok"] * 4, rows
    assert seen == [["a", "c", "d"], ["b"]], "one relation a batch"
    assert {r["planted_fault"] for r in rows} == {"none"}
    validate(stage.schema().table(rows), stage.schema(), "rows")
    shown = [pixels_of(files[n]) for n in "abcd"]
    assert [p.shape for p in shown] == [(64, 64, 3)] * 4
    assert all(p.std() > 1 for p in shown)
    assert len({p.tobytes() for p in shown}) == 4


def test_a_sample_does_not_depend_on_what_else_is_in_its_batch(stage, layout):
    alone = DreamRelation(DreamRelationConfig(**layout, batch_size=1))
    alone.generator, alone._ready = stage.generator, True
    samples = [make_sample(n) for n in "abcd"]
    together, single = latents_of(stage, samples), latents_of(alone, samples[::-1])
    worst = max(float((together[n] - single[n]).abs().max()) for n in "abcd")
    assert worst < LATENT_NOISE, worst
    a, b = stage.run(samples, {})[1], alone.run(samples, {})[1]
    assert max(np.abs(pixels_of(a[n]) - pixels_of(b[n])).max() for n in "abcd") <= 1


def test_a_lora_is_switched_on_for_its_relation_and_off_again(stage, monkeypatch):
    stage.ready()
    monkeypatch.setattr(type(stage.generator.pipe), "from_pretrained", None)  # the base is not loaded again
    plain, hug = make_sample("a", relation="fence"), make_sample("a")
    before = latents_of(stage, [plain])["a"]
    with_lora = latents_of(stage, [hug])["a"]
    assert float((with_lora - before).abs().mean()) > 0.1
    assert torch.equal(latents_of(stage, [plain])["a"], before)
    assert torch.equal(latents_of(stage, [hug])["a"], with_lora)


def test_both_namings_of_loras_give_the_same_latents(layout, stage):
    newer = DreamRelation(DreamRelationConfig(**layout, loras={"hug": "newer.safetensors", "fence": LORA_FOLDER}))
    latents = latents_of(newer, [make_sample("a")])["a"]
    assert torch.equal(latents, latents_of(stage, [make_sample("a")])["a"])
    assert torch.equal(latents, latents_of(newer, [make_sample("a", relation="fence")])["a"])


def test_references_boxes_and_phrases_each_matter(stage):
    first = latents_of(stage, [make_sample("b")])["b"]
    for change in (
        {"reference_0_id": "elsewhere"},
        {"box_0": [0.5, 0.1, 0.9, 0.6]},
        {"reference_1_name": "plushie bear"},
        {"prompt": "a cat."},
        {"seed": 1},
    ):
        assert float((latents_of(stage, [make_sample("b", **change)])["b"] - first).abs().max()) > 0.01, change


def test_references_are_seen_on_white_and_encoded_once(stage, monkeypatch):
    stage.ready()
    stage._features.clear()
    shown = []
    encode = stage.generator.encode_reference
    monkeypatch.setattr(stage.generator, "encode_reference", lambda p: shown.append(p) or encode(p))
    latents_of(stage, [make_sample("a"), make_sample("a", seed=5)])
    assert len(shown) == 2, "two references in two samples"
    assert all(p.getpixel((0, 0)) == (255, 255, 255) for p in shown)


def test_a_prompt_that_the_text_encoder_cannot_read_to_its_end_fails_alone(stage):
    long = make_sample("c", prompt="a dog " * 80 + "hugging a cat.")
    rows, files, _ = stage.run([make_sample("a"), long], {})
    assert [r["status"] for r in rows] == ["ok", "error"]
    assert rows[1]["error_code"] == "prompt_too_long"
    assert set(files) == {"a"}


def test_numbers_that_overflow_fail_alone(stage, monkeypatch):
    stage.ready()
    sample = stage.generator.sample

    def overflow(scenes, settings):
        latents = sample(scenes, settings)
        latents[1] = float("nan")
        return latents

    monkeypatch.setattr(stage.generator, "sample", overflow)
    rows, files, _ = stage.run([make_sample("a"), make_sample("c")], {})
    assert [r["error_code"] for r in rows] == [None, "not_finite"]
    assert set(files) == {"a"}


def scene(boxes, phrases=("cat", "dog"), seed=3):
    widths = Widths.of(tiny_generator().pipe)
    features = torch.randn(len(boxes), widths.tokens, widths.image, generator=torch.Generator().manual_seed(9))
    return Scene("a cat and a dog.", phrases, boxes, list(features), seed)


@pytest.mark.slow
def test_zero_boxes_and_scale_zero_are_plain_sdxl():
    from diffusers import StableDiffusionXLPipeline

    generator, boxes = tiny_generator(), [[0.0, 0.2, 0.5, 0.9], [0.5, 0.2, 1.0, 0.9]]
    stock = StableDiffusionXLPipeline.from_pretrained(TinyModels.of().base, add_watermarker=False)
    stock.set_progress_bar_config(disable=True)
    noise = generator.noise([torch.Generator().manual_seed(3)], SETTINGS)
    plain = stock(
        "a cat and a dog.", negative_prompt="lowres", latents=noise, num_inference_steps=3, height=128, width=128,
        output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(generator.sample([scene([[0.0] * 4] * 2)], SETTINGS), plain)
    unscaled = Settings(3, 5.0, 0.0, 128, 128, "lowres")
    assert torch.equal(generator.sample([scene(boxes)], unscaled), plain)
    assert float((generator.sample([scene(boxes)], SETTINGS) - plain).abs().mean()) > 0.1


def test_samples_of_one_and_three_subjects_share_a_batch():
    boxes = [[0.0, 0.1, 0.4, 0.9], [0.3, 0.1, 0.7, 0.9], [0.6, 0.1, 1.0, 0.9]]
    one, three = scene(boxes[:1], ("cat",)), scene(boxes, ("cat", "dog", "toy"), seed=4)
    generator = tiny_generator()
    together = generator.sample([one, three], SETTINGS)
    assert float((together[:1] - generator.sample([one], SETTINGS)).abs().max()) < LATENT_NOISE
    assert float((together[1:] - generator.sample([three], SETTINGS)).abs().max()) < LATENT_NOISE


def test_without_guidance_only_the_conditional_half_runs(monkeypatch):
    generator, sizes = tiny_generator(), []
    forward = generator.pipe.unet.forward
    monkeypatch.setattr(generator.pipe.unet, "forward", lambda x, *a, **k: sizes.append(len(x)) or forward(x, *a, **k))
    latents = generator.sample([scene([[0.0, 0.1, 0.4, 0.9]], ("cat",))], Settings(2, 1.0, 0.6, 128, 128))
    assert sizes == [1, 1]
    assert latents.isfinite().all()


def test_a_picture_need_not_be_square():
    generator = tiny_generator()
    settings = Settings(1, 5.0, 0.6, 64, 192, "lowres")
    assert grids(8, 24, 3) == [(8, 24), (4, 12), (2, 6)]
    assert generator.sample([scene([[0.0, 0.0, 0.3, 1.0]], ("cat",))], settings).shape == (1, 4, 8, 24)
    odd = Settings(1, 5.0, 0.6, 72, 120, "lowres")
    assert generator.sample([scene([[0.0, 0.0, 0.3, 1.0]], ("cat",))], odd).shape == (1, 4, 9, 15)
    cells = box_cells(torch.tensor([[[0.5, 0.0, 1.0, 0.25]]]), 4, 12).reshape(4, 12)
    assert cells[0, 6:].all()
    assert cells.sum() == 6
    assert grids(125, 125, 3) == [(125, 125), (63, 63), (32, 32)], "levels round up, as strided convolutions do"


def test_keys_values_and_masks_are_made_once_a_call(monkeypatch):
    generator, calls = tiny_generator(), []
    layer = next(iter(generator.adapter.ms_adapter.values())).to_k_ip
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    generator.sample([scene([[0.0, 0.0, 0.5, 1.0]], ("cat",))], SETTINGS)
    hook.remove()
    assert calls == [1], "one call of three steps"


def test_the_files_it_asks_for_are_those_it_loads(layout, stage, tmp_path):
    published = {w.purpose: w for w in DreamRelation().weights()}
    base = published["SDXL base"].files
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in base
    assert "text_encoder_2/model.fp16.safetensors" in base
    assert not any("fp16" in f for f in DreamRelation(DreamRelationConfig(precision="float32")).weights()[0].files)
    assert published["MS-Diffusion adapter"].files == ("ms_adapter.bin",)
    assert published["relation LoRAs"].files == (ANY,), "whatever the hub has"
    no_vae = DreamRelation(DreamRelationConfig(vae="madebyollin/sdxl-vae-fp16-fix")).weights()
    assert not any(f.startswith("vae/") for f in no_vae[0].files)
    assert no_vae[-2].source == "madebyollin/sdxl-vae-fp16-fix"
    models.require([stage])
    shutil.copytree(layout["base"], tmp_path / "base")
    (tmp_path / "base/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="SDXL base"):
        models.require([DreamRelation(DreamRelationConfig(**{**layout, "base": str(tmp_path / "base")}))])
    assert lora_file("a/b/") == "a/b/pytorch_lora_weights.safetensors"


def test_a_vae_and_an_adapter_of_ones_own(layout, stage):
    own = {**layout, "adapter": layout["adapter"] + "/ms_adapter.bin", "vae": layout["base"] + "/vae"}
    made = DreamRelation(DreamRelationConfig(**own)).run([make_sample("b")], {})[1]
    assert made["b"] == stage.run([make_sample("b")], {})[1]["b"]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_sixteen_bits(layout, precision):
    """The VAE stays in float32, as its config says it overflows otherwise."""
    made = DreamRelation(DreamRelationConfig(**{**layout, "precision": precision, "steps": 2}))
    rows, files, _ = made.run([make_sample("a")], {})
    assert rows[0]["status"] == "ok", rows
    assert made.generator.pipe.vae.dtype == torch.float32
    assert next(made.generator.adapter.parameters()).dtype == made.generator.dtype == getattr(torch, precision)
    assert pixels_of(files["a"]).std() > 1


def test_local_tokens_reach_the_picture(layout, stage, tmp_path):
    open_clip_checkpoint(load_image_encoder(TinyModels.of().encoder, torch.float32), tmp_path / "epoch_6.pt")
    local = DreamRelation(DreamRelationConfig(**layout, local_encoder=str(tmp_path)))
    made = latents_of(local, [make_sample("a")])["a"]
    widths = Widths.of(local.generator.pipe)
    assert local._features["cat-0"].shape == (widths.tokens + 16, widths.image)
    assert not torch.equal(
        local._features["cat-0"][widths.tokens :], local._features["plushie bear-1"][widths.tokens :]
    )
    assert float((made - latents_of(stage, [make_sample("a")])["a"]).abs().max()) > 0.01
    torch.save({"visual.ln_pre.weight": torch.zeros(3)}, tmp_path / "epoch_6.pt")
    with pytest.raises(UserError, match="local encoder"):
        DreamRelation(DreamRelationConfig(**layout, local_encoder=str(tmp_path))).ready()


def test_a_negative_prompt_that_is_too_long_and_offload_without_a_gpu_are_refused(layout):
    with pytest.raises(UserError, match="negative_prompt"):
        DreamRelation(DreamRelationConfig(**layout, negative_prompt="ugly, " * 80)).ready()
    with pytest.raises(UserError, match="offload"):
        DreamRelation(DreamRelationConfig(**layout, offload=True)).ready()


def test_where_and_how_fast_do_not_change_the_fingerprint(layout):
    def mark(**changes):
        return DreamRelation(DreamRelationConfig(**{**layout, **changes})).fingerprint({})

    assert mark() == mark(batch_size=2, compile=True, offload=True)
    for change in (
        {"steps": 4},
        {"guidance": 4.0},
        {"adapter_scale": 0.5},
        {"vae_tiling": True},
        {"loras": {"hug": None}},
    ):
        assert mark() != mark(**change), change


def test_a_config_can_be_read_without_loading_diffusers():
    code = "import sys, pipeline.synthesis.dreamrelation.stage; print({'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr
