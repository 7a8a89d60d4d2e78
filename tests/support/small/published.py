"""Tiny checkpoints in the published layouts, and encoders that show what went in and what came out.

The VQ network here has a colour for every code, on a circle, so that a picture is made of codes and read back exactly.
The T5 gives every word a feature vector that was chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenar.encoders.config import VqConfig
from tokenar.encoders.vq import VqNetwork

SHARE = 0.98
"""Radius of the circle of colours, of what a picture can hold."""


def circle_vq(codes: int) -> VqNetwork:
    """A VQ network of two pixels a token whose code k is the colour at angle 2 pi k / codes of red and green."""
    config = VqConfig(ch_mult=(4, 4), base_channels=32, z_channels=2, codebook_size=codes, codebook_embed_dim=2)
    net = VqNetwork(config).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.zero_()  # every residual block and attention then changes nothing
    signs = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).repeat(32, 1)  # of each group norm's four channels
    same = torch.eye(128)
    net.encoder.conv_in.weight[:2, :2, 1, 1] = torch.eye(2)
    net.encoder.conv_blocks[0].res[0].nin_shortcut.weight[:, :2, 0, 0] = signs
    net.encoder.conv_blocks[0].downsample.conv.weight[:, :, :2, :2] = same[..., None, None] / 4
    net.decoder.conv_in.weight[:, :, 1, 1] = signs
    net.decoder.conv_blocks[0].upsample.conv.weight[:, :, 1, 1] = same
    for part, scale in ((net.encoder, 1.0), (net.decoder, SHARE * 0.5**0.5)):
        part.norm_out.weight.fill_(1)
        # silu(x) - silu(-x) is x: the activation before the last layer is undone.
        part.conv_out.weight[:2, :4, 1, 1] = scale * torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1]])
    for conv in (net.quant_conv, net.post_quant_conv):
        conv.weight[:, :, 0, 0] = torch.eye(2)
    net.quantize.embedding.weight.copy_(_colours(codes))
    return net


def _colours(codes: int) -> Tensor:
    angle = torch.arange(codes) * (2 * torch.pi / codes)
    return torch.stack([angle.cos(), angle.sin()], 1)


def picture_of(tokens: Tensor, codes: int) -> Image.Image:
    """A picture whose codes are ``tokens`` [N]."""
    side = round(len(tokens) ** 0.5)
    colours = torch.cat([_colours(codes) * SHARE, torch.zeros(codes, 1)], 1)[tokens.long()].view(side, side, 3)
    pixels = ((colours + 1) * 127.5).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels.repeat(2, 0).repeat(2, 1))


def tokens_of(picture: Image.Image, codes: int) -> Tensor:
    """The codes [N] of a picture."""
    colours = torch.from_numpy(np.asarray(picture.convert("RGB"))[::2, ::2, :2].astype(np.float32)).flatten(0, 1)
    return (((colours / 127.5) - 1) @ _colours(codes).T).argmax(-1)


def feature_t5(folder: Path, features: Tensor) -> list[str]:
    """A T5 in ``folder`` and B prompts of T words, for which it gives ``features`` [B, T, C]."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    rows, length, width = features.shape
    words = [[f"w{row}x{place}" for place in range(length)] for row in range(rows)]
    known = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *(w for row in words for w in row)])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    # The norm divides by 2^20 whatever the features are, because its epsilon is 2^40.
    config = T5Config(
        vocab_size=len(known), d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2, layer_norm_epsilon=2.0**40
    )
    net = T5EncoderModel(config).requires_grad_(False)
    for name, parameter in net.named_parameters():
        parameter.fill_(2.0**20 if name.endswith("final_layer_norm.weight") else 0)
    net.shared.weight[3:] = features.flatten(0, 1).float()
    net.save_pretrained(folder)
    return [" ".join(row) for row in words]


def command_line(**told: Any) -> argparse.Namespace:
    """The command line that the published trainer stores, with some of its settings."""
    default = {
        "vq_model": "VQ-16", "gpt_model": "GPT-XL", "gpt_type": "edit", "vocab_size": 16384, "cls_token_num": 120,
        "image_size": 512, "downsample_size": 16, "distill_mode": "dinov2", "lr": 1e-4, "mixed_precision": "bf16",
        "t5_model_type": "flan-t5-xl", "eval_path": ["data/eval"], "concat_target": True, "max_ref_num": 4,
        "instruct_token_mode": "casual", "instruct_token_num": 120, "no_compile": False, "gpt_ckpt": None,
    }  # fmt: skip
    return argparse.Namespace(**(default | told))
