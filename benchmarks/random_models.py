"""Writes the paper's models with random weights, in the file layouts of the published ones, small or full-size.

Speed does not depend on the values of the weights, so a benchmark downloads nothing. "small" has the same structure in
a size for which a processor core needs a good part of a second a sample.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_sdxl(folder: Path, full: bool, precision: str) -> dict[str, Any]:
    """Write SDXL base, CLIP's image encoder and the adapter. Returns the synthesis settings that name them."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModel,
    )

    from pipeline.device import dtype_of
    from pipeline.synthesis.dreamrelation.adapter import Adapter
    from pipeline.synthesis.dreamrelation.resampler import ResamplerSizes

    first, second = (768, 1280) if full else (64, 64)
    dtype = dtype_of(precision)  # type: ignore[arg-type]
    tokenizer = clip_tokenizer(folder / "words")
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    one = CLIPTextConfig(hidden_size=first, intermediate_size=4 * first, num_hidden_layers=12 if full else 2,
                         num_attention_heads=first // 64 or 1, **words)  # fmt: skip
    two = CLIPTextConfig(hidden_size=second, intermediate_size=4 * second, num_hidden_layers=32 if full else 2,
                         num_attention_heads=second // 64 or 1, projection_dim=second, **words)  # fmt: skip
    channels = (320, 640, 1280) if full else (64, 128, 256)
    unet = UNet2DConditionModel(
        sample_size=128 if full else 32, block_out_channels=channels, layers_per_block=2 if full else 1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10) if full else (1, 1, 2),
        attention_head_dim=[c // 64 for c in channels], cross_attention_dim=first + second, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + second,
    )  # fmt: skip
    widths = (128, 256, 512, 512) if full else (32, 64, 64, 64)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths, layers_per_block=2, latent_channels=4, scaling_factor=0.13025, force_upcast=False,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    pipe = StableDiffusionXLPipeline(
        vae.to(dtype), CLIPTextModel(one).to(dtype), CLIPTextModelWithProjection(two).to(dtype), tokenizer, tokenizer,
        unet.to(dtype), scheduler, add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "base")
    vision = CLIPVisionConfig(
        hidden_size=1664 if full else 64, intermediate_size=8192 if full else 128, patch_size=14, image_size=224,
        num_hidden_layers=48 if full else 3, num_attention_heads=16 if full else 4, hidden_act="gelu",
    )  # fmt: skip
    CLIPVisionModel(vision).to(dtype).save_pretrained(folder / "encoder")
    sizes = ResamplerSizes() if full else ResamplerSizes(width=64, heads=4, head_width=16)
    adapter = Adapter(unet, sizes, vision.hidden_size, first)
    (folder / "adapter").mkdir()
    save_file(
        {n: torch.randn_like(t, dtype=dtype) * 0.02 for n, t in adapter.state_dict().items()},
        folder / "adapter" / "ms_adapter.safetensors",
    )
    return {
        "backend": "dreamrelation", "base": str(folder / "base"), "image_encoder": str(folder / "encoder"),
        "adapter": str(folder / "adapter" / "ms_adapter.safetensors"), "resampler": sizes.model_dump(),
        "find_loras": False,
        "precision": precision, "side": 1024 if full else 256, "size": 512 if full else 256,
        "steps": 30 if full else 8,
    }  # fmt: skip


def clip_tokenizer(folder: Path) -> Any:
    """A byte-level CLIP tokenizer without merges, so that every letter is a token."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def write_ben2(folder: Path, full: bool) -> dict[str, Any]:
    """Write BEN2 and return the matting settings. BEN2 has one size; "small" gives it pictures of 256 pixels."""
    from pipeline.matting.ben2_network import Ben2Network

    folder.mkdir()
    save_file(Ben2Network().state_dict(), folder / "model.safetensors")
    return {"backend": "ben2", "source": str(folder), "side": 1024 if full else 256}


def write_judge(folder: Path, full: bool, precision: str) -> dict[str, Any]:
    """Write Gemma-3n and return the semantics settings. "full" has E4B's sizes; "small" has a vision tower of 7 million
    parameters and a narrow text model."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from tiny.vlm import letter_tokenizer, save_tiny_gemma

    save_tiny_gemma(folder)
    if full:
        from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration

        tokenizer = letter_tokenizer()
        number = tokenizer.convert_tokens_to_ids
        config = Gemma3nConfig(
            boi_token_id=number("<start_of_image>"), eoi_token_id=number("<end_of_image>"),
            image_token_id=number("<image_soft_token>"), boa_token_id=number("<start_of_audio>"),
            eoa_token_id=number("<end_of_audio>"), audio_token_id=number("<audio_soft_token>"),
            vision_soft_tokens_per_image=16,
        )  # fmt: skip
        from pipeline.device import dtype_of

        torch.set_default_dtype(dtype_of(precision))  # type: ignore[arg-type]
        try:
            Gemma3nForConditionalGeneration(config).save_pretrained(folder)
        finally:
            torch.set_default_dtype(torch.float32)
    return {
        "backend": "transformers", "model": str(folder), "precision": precision, "attempts": 1,
        "max_tokens": 160 if full else 64, "image_side": 512 if full else 128,
    }  # fmt: skip


def write_encoder(folder: Path, full: bool) -> dict[str, Any]:
    """Write a DINOv2 of timm (ViT-B at 518 pixels, or small ViT-S at 224) and return the identity settings."""
    import timm

    name = f"vit_{'base' if full else 'small'}_patch14_dinov2.lvd142m"
    folder.mkdir()
    save_file(timm.create_model(name).state_dict(), folder / "model.safetensors")
    return {"backend": "timm", "encoder": name, "source": str(folder), "side": 518 if full else 224}
