"""The published program's numbers, module by module and as a whole, on its own tiny models."""

import re

import golden
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from PIL import Image
from tiny.sdxl import PART, needs_tiny, sizes_of, tiny_generator

from pipeline.synthesis.dreamrelation.adapter import Adapter
from pipeline.synthesis.dreamrelation.attention import SubjectAttention, Subjects, box_cells, box_masks
from pipeline.synthesis.dreamrelation.generator import Settings, Text, clip_pixels
from pipeline.synthesis.dreamrelation.resampler import Resampler, ResamplerSizes, box_features

KINDS = ("resampler", "masked_ip_attention", "box_masks", "image_encoder", "preprocess", "pipeline")
pytestmark = pytest.mark.usefixtures("one_thread")


def check(found, expected, case):
    tolerance = golden.read(case)["tolerance"]
    torch.testing.assert_close(found, expected, atol=tolerance["atol"], rtol=tolerance.get("rtol", 0.0))


def weights(stored):
    return {name.removeprefix("w."): value for name, value in stored.items() if name.startswith("w.")}


def test_golden_data_is_there():
    golden.check_present("dreamrelation", *KINDS)


@pytest.mark.parametrize("case", golden.cases("dreamrelation", "resampler"))
@torch.no_grad()
def test_resampler(case):
    values, stored = golden.read(case), golden.tensors(case)
    config = values["config"]
    net = Resampler(
        sizes_of(config), config["embedding_dim"], config["phrase_embeddings_dim"], config["output_dim"]
    )  # fmt: skip
    net.load_state_dict(weights(stored))
    drop = torch.tensor(values["drop_grounding_tokens"]).bool().repeat_interleave(values["n_subjects"])
    torch.testing.assert_close(box_features(stored["in.boxes"]), stored["mid.fourier"], atol=1e-5, rtol=0)
    start = net.start_latents(stored["in.phrase_embeds"], stored["in.boxes"])
    check(start, stored["mid.grounding_latents_before_drop"], case)
    check(net(stored["in.x"], stored["in.phrase_embeds"], stored["in.boxes"], drop), stored["out.tokens"], case)


@pytest.mark.parametrize("case", golden.cases("dreamrelation", "masked_ip_attention"))
@torch.no_grad()
def test_masked_attention(case):
    values, stored = golden.read(case), golden.tensors(case)
    grid, queries, width = values["grid"], values["tokens_per_subject"], values["cross_attention_dim"]
    attn = Attention(
        values["hidden"], width, heads=values["heads"], dim_head=values["dim_head"], processor=SubjectAttention("layer")
    )
    own = weights(stored)
    to_keys, to_values = own.pop("to_k_ip.weight"), own.pop("to_v_ip.weight")
    attn.load_state_dict(own)
    first = values["batch"] // 2 if values["cfg_doubled_uncond_first"] else 0  # of the conditional half
    states, boxes = stored["in.encoder_hidden_states"], stored["in.boxes"][first:]
    images = states[first:, values["text_tokens"] + values["dummy_tokens"] :]
    scale = torch.tensor(values["subject_scales"] or [values["scale"]] * values["n_subjects"])
    masks = box_masks(boxes, grid, grid, queries, torch.float32)
    subjects = Subjects(
        {"layer": images @ to_keys.T},
        {"layer": images @ to_values.T * scale.repeat_interleave(queries)[:, None]},
        {grid * grid: masks},
    )
    found = attn(stored["in.hidden_states"], states[:, : values["text_tokens"]], subjects=subjects)
    check(found, stored["out.hidden_states"], case)
    assert torch.equal(masks.covered[:, 0, :, 0] == 0, stored["mid.background"][first:].bool())
    plain = attn(stored["in.hidden_states"], states[:, : values["text_tokens"]])
    check(plain, stored["out.text_only"], case)
    assert torch.equal(found[:first], plain[:first]), "the unconditional half is plain SDXL, to the bit"


@pytest.mark.parametrize("case", golden.cases("dreamrelation", "box_masks"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_box_masks(case, dtype):
    """Exact, also for boxes that were rounded to 16 bits before."""
    values, stored = golden.read(case), golden.tensors(case)
    name = str(dtype).removeprefix("torch.")
    for grid in values["grids"]:
        cells = box_cells(stored["in.boxes"].to(dtype), grid, grid)
        assert torch.equal(cells.transpose(1, 2), stored[f"out.allowed.{grid}.{name}"].bool()[..., 1:])
        assert torch.equal(~cells.any(1), stored[f"out.background.{grid}.{name}"].bool())


@pytest.mark.parametrize("case", golden.cases("dreamrelation", "preprocess"))
def test_preprocessing_is_exact(case):
    stored = golden.tensors(case)
    expected = stored["out.pixel_values_sub2"]
    pixels = clip_pixels(Image.fromarray(stored["in.rgb_uint8_hwc"].numpy()), 2 * expected.shape[-1])
    torch.testing.assert_close(pixels[None, :, ::2, ::2], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.mean((1, 2)), stored["out.channel_means"], atol=1e-5, rtol=0)


@needs_tiny
@pytest.mark.parametrize("case", golden.cases("dreamrelation", "image_encoder"))
@torch.no_grad()
def test_image_encoder(case):
    stored, generator = golden.tensors(case), tiny_generator(case)
    features = generator.encode_pixels(stored["in.concept_images"].flatten(0, 1))
    check(features, stored["mid.clip_penultimate"], case)
    tokens = generator.adapter.image_proj(features, stored["in.phrase_embeds"], stored["in.boxes"])
    dummy = generator.adapter.dummy_image_tokens.expand(len(stored["in.concept_images"]), -1, -1)
    tokens = tokens.unflatten(0, stored["in.concept_images"].shape[:2]).flatten(1, 2)
    check(torch.cat([dummy, tokens], 1), stored["out.image_prompt_embeds"], case)


def run(case):
    """(generator, latents) of a golden run, through the code that makes pictures."""
    values, stored = golden.read(case), golden.tensors(case)
    call = values["call"]
    generator = tiny_generator(case, values["lora_file"])
    generator.use_relation("hug" if values["lora_file"] else None)
    negative = call.get("negative_prompt") or ""
    settings = Settings(
        call["num_inference_steps"], call["guidance_scale"], values["adapter_scale"], call["height"], call["width"],
        negative if isinstance(negative, str) else negative[0],
    )  # fmt: skip
    images = call.get("num_images_per_prompt", 1)
    if "prompt" in call:
        prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
        text = generator.encode_text([p for p in prompts for _ in range(images)], settings)
        torch.testing.assert_close(text.tokens, stored["mid.prompt_embeds"], atol=1e-4, rtol=1e-4)
    else:
        names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
        text = Text(*(stored[f"in.{name}"] for name in names))
    pixels, boxes = stored["in.concept_images"], stored["in.boxes"]
    features = generator.encode_pixels(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    phrases = [phrase for sample in call["phrases"] for phrase in sample]
    tokens = generator.image_tokens(features, phrases, boxes)
    shown = stored["mid.image_prompt_embeds"][:, generator.adapter.dummy_image_tokens.shape[1] :]
    torch.testing.assert_close(tokens.flatten(1, 2), shown, atol=1e-4, rtol=1e-4)
    subjects = generator.subjects(
        tokens.repeat_interleave(images, 0), boxes.repeat_interleave(images, 0), settings
    )  # fmt: skip
    return generator, generator.denoise(text, subjects, stored["in.latents"], settings)


@needs_tiny
@pytest.mark.parametrize("case", golden.cases("dreamrelation", "pipeline"))
def test_pipeline(case):
    values, stored = golden.read(case), golden.tensors(case)
    generator, latents = run(case)
    check(latents, stored["out.latents"], case)
    if seed := re.search(r"manual_seed\((\d+)\)", values["info"].get("generator", "")):
        settings = Settings(height=values["call"]["height"], width=values["call"]["width"])
        noise = generator.noise([torch.Generator("cpu").manual_seed(int(seed[1]))], settings)
        assert torch.equal(noise, stored["in.latents"])
    image = case.with_name("_".join([*case.stem.split("_")[:2], "image.json"]))
    if image.with_suffix(".safetensors").exists():
        (expected,) = golden.tensors(image).values()
        check(generator.decode(latents), expected, case)


SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.skipif(not golden.has(PART, "fullsize_keys.json"), reason="no golden data")
def test_the_full_adapter_has_the_published_names_and_shapes():
    published = golden.read(golden.near(golden.ROOT / PART / "any.json", "fullsize_keys.json"))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET)
        adapter = Adapter(unet, ResamplerSizes(), image_width=1664, phrase_width=768)
    expected = {f"{g}.{n}": s for g in ("image_proj", "ms_adapter") for n, s in published[g].items()}
    expected["dummy_image_tokens"] = published["dummy_image_tokens"]
    assert {name: list(value.shape) for name, value in adapter.state_dict().items()} == expected
    assert {str(i): name for i, name in adapter.layers.items()} == published["ms_adapter_index_to_processor"]
