"""A second golden root of the same shape: other sizes, other folders, other settings, its numbers made by this project.

It says nothing about the published programs. A golden test that passes on it took everything it needs out of the root
that it was given.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tiny.sdxl import TinyModels, sizes_of
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

from golden.released import config_of_keys, table_rows
from pipeline.synthesis.dreamrelation.adapter import Adapter
from pipeline.synthesis.dreamrelation.generator import Settings, Text, load_generator
from pipeline.synthesis.dreamrelation.resampler import Resampler, box_features
from tokenar.model.positions import canvas_coordinates, make_layout
from tokenar.model.transformer import TokenAR

RESAMPLER = {"dim": 36, "depth": 2, "dim_head": 8, "heads": 3, "num_queries": 8, "ff_mult": 2}
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def write_case(path: Path, kind: str, tensors: dict[str, Any], **told: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": kind, **told}))
    if tensors:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path.with_suffix(".safetensors"))


def write_keys(root: Path) -> None:
    """Lists of state-dict keys of models with two blocks, and with other lengths than the published ones."""
    same = {"multi_cond": True, "ref_index_embed": True, "instruct_token_mode": "casual", "distill_mode": None}
    small = {"n_layer": 2, "n_head": 3, "dim": 96, "head_dim": 32, "ffn_hidden": 256, "vocab_size": 50}
    lengths = {"block_size": 64, "cls_token_num": 30, "caption_dim": 20}
    for name, settings in {
        "two_disentangled": {"max_ref_num": 2, "max_edited_num": 2, "instruct_token_num": 0},
        "two": {"max_ref_num": 2, "max_edited_num": 1, "instruct_token_num": 7},
        "four": {"max_ref_num": 4, "max_edited_num": 4, "instruct_token_num": 5},
    }.items():
        model: dict[str, Any] = {"name": f"GPT-{name}", **small, **lengths, **same, **settings}
        net = TokenAR(config_of_keys(model))
        model["num_parameters"] = sum(p.numel() for p in net.parameters())
        model["num_buffer_elements"] = sum(b.numel() for b in net.buffers())
        model["buffers"] = [n for n, _ in net.named_buffers()]
        model["rope_rows"] = [table_rows(model, 8), 16, 2]
        keys = {n: list(t.shape) for n, t in net.state_dict().items()}
        write_case(root / f"tokenar/keys/{name}.json", "state_dict_keys", {}, model=model, keys=keys)


def write_rotary(root: Path) -> None:
    """Tables as the release computes them, in float32: the width of a 3B model's heads, two and three source blocks."""
    tables, stored = [], {}
    for name, blocks, width in (("wide", 4, 100), ("two", 2, 100), ("three", 3, 16)):
        table: dict[str, Any] = {
            "name": name, "grid": 32, "head_dim": width, "rope_base": 10000, "max_ref_num": blocks,
            "max_edited_num": blocks, "cls_token_num": 9, "instruct_token_num": 4, "multi_cond": True,
            "instruct_rows_in_table": blocks > 2,
        }  # fmt: skip
        table["rows"] = table_rows(table, 32)
        table["shape"] = [table["rows"], width // 2, 2]
        if blocks != 3:
            heads = {"n_head": 1, "dim": width, "n_layer": 1, "vocab_size": 2, "caption_dim": 2, "distill_mode": None}
            extra = {"ref_index_embed": True, "instruct_token_mode": "casual", "block_size": 1024}
            model = table | heads | extra | ({} if blocks > 2 else {"instruct_token_num": 0, "max_edited_num": 1})
            places = canvas_coordinates(make_layout(config_of_keys(model), blocks - 1))
            frequencies = 1.0 / 10000.0 ** (torch.arange(0, width // 2, 2).float() / (width // 2))
            angles = (places.float()[..., None] * frequencies).flatten(1)
            made = torch.stack([angles.cos(), angles.sin()], -1) * (places[:, :1] >= 0)[..., None]
            table |= dict(zip(("sum_cos", "sum_sin"), made.double().sum((0, 1)).tolist(), strict=True))
            stored |= {f"{name}/rows": torch.arange(0, len(made), 7), f"{name}/values": made[::7].clone()}
        tables.append(table)
    write_case(root / "tokenar/rope/other.json", "rope_tables", stored, tables=tables, tolerance={"atol": 0.0})


def write_models(folder: Path) -> None:
    """Tiny models of other widths than those of the set, random, in folders of other names."""
    given = TinyModels.of()
    base, seer = folder / "stable", folder / "seer"
    shutil.copytree(given.base, base, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        told = CLIPTextConfig.from_pretrained(base / name)
        told.hidden_size, told.intermediate_size, told.projection_dim = 24, 32, 24
        kind(told).save_pretrained(base / name)
    told = UNet2DConditionModel.load_config(base / "unet") | {"cross_attention_dim": 48}
    unet = UNet2DConditionModel.from_config(told)
    unet.save_pretrained(base / "unet")
    AutoencoderKL.from_config(AutoencoderKL.load_config(base / "vae")).save_pretrained(base / "vae")
    told = CLIPVisionConfig.from_pretrained(given.encoder)
    told.hidden_size, told.image_size = 32, 64
    told.patch_size = 8
    CLIPVisionModel(told).save_pretrained(seer)
    adapter = Adapter(unet, sizes_of(RESAMPLER), image_width=32, phrase_width=24)
    stored: dict[str, Any] = {"image_proj": {}, "ms_adapter": {}}
    for name, value in adapter.state_dict().items():
        group, _, rest = name.partition(".")
        drawn = torch.randn(value.shape) * 0.1
        stored.update({name: drawn}) if not rest else stored[group].update({rest: drawn})
    torch.save(stored, folder / "other_ms_adapter.bin")
    (folder / "tiny_model.json").write_text(json.dumps({"resampler": RESAMPLER}))


@torch.no_grad()
def write_dreamrelation(folder: Path) -> None:
    """A resampler, and a whole run on other tiny models."""
    write_models(folder)
    net = Resampler(sizes_of(RESAMPLER), 32, 24, 48)
    x, phrases, boxes = torch.randn(2, 65, 32), torch.randn(2, 24), torch.rand(2, 4)
    stored = {f"w.{name}": value for name, value in net.state_dict().items()}
    stored |= {"in.x": x, "in.boxes": boxes, "in.phrase_embeds": phrases, "mid.fourier": box_features(boxes)}
    stored["mid.grounding_latents_before_drop"] = net.start_latents(phrases, boxes)
    stored["out.tokens"] = net(x, phrases, boxes, torch.tensor([False, False]))
    widths = {"embedding_dim": 32, "phrase_embeddings_dim": 24, "output_dim": 48}
    told = {"config": RESAMPLER | widths, "drop_grounding_tokens": [0], "n_subjects": 2, "tolerance": TOLERANCE}
    write_case(folder / "resampler_other.json", "resampler", stored, **told)

    made = load_generator(
        folder / "stable", folder / "seer", folder / "other_ms_adapter.bin", torch.device("cpu"), torch.float32,
        sizes=sizes_of(RESAMPLER),
    )  # fmt: skip
    call = {"num_inference_steps": 2, "guidance_scale": 5.0, "height": 64, "width": 64, "phrases": [["cat", "dog"]]}
    settings = Settings(2, 5.0, 0.6, 64, 64)
    text = Text(*(torch.randn(1, *shape) for shape in ((77, 48), (24,), (77, 48), (24,))))
    pixels, boxes = torch.randn(1, 2, 3, 64, 64), torch.tensor([[[0.0, 0.1, 0.5, 0.9], [0.5, 0.1, 1.0, 0.9]]])
    noise = torch.randn(1, 4, 8, 8)
    features = made.encode_pixels(pixels.flatten(0, 1))
    tokens = made.image_tokens(features[None], ["cat", "dog"], boxes)
    embeds = torch.cat([made.adapter.dummy_image_tokens, tokens.flatten(1, 2)], 1)
    stored = {
        "in.concept_images": pixels, "in.boxes": boxes, "in.latents": noise, "mid.image_prompt_embeds": embeds,
        "in.prompt_embeds": text.tokens, "in.pooled_prompt_embeds": text.pooled,
        "in.negative_prompt_embeds": text.negative_tokens, "in.negative_pooled_prompt_embeds": text.negative_pooled,
        "out.latents": made.denoise(text, made.subjects(tokens, boxes, settings), noise, settings),
    }  # fmt: skip
    told = {"call": call, "lora_file": None, "adapter_scale": 0.6, "info": {}, "tolerance": TOLERANCE}
    write_case(folder / "runs/pipeline_other.json", "pipeline", stored, **told)
    phrases = made.encode_phrases(["cat", "dog"])
    stored = {
        "in.concept_images": pixels, "in.boxes": boxes[0], "in.phrase_embeds": phrases,
        "mid.clip_penultimate": features, "out.image_prompt_embeds": embeds,
    }  # fmt: skip
    write_case(folder / "other_encoder.json", "image_encoder", stored, tolerance=TOLERANCE, resampler=RESAMPLER)
