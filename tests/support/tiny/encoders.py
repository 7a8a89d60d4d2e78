"""A T5, a DINOv2 and a VQ tokenizer of the real classes with random weights, small enough for a test."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenar.encoders.config import VqConfig
from tokenar.encoders.vq import VqNetwork

TINY_VQ = VqConfig(ch_mult=(1, 2), base_channels=32, z_channels=8, codebook_size=64)


def tiny_vq(seed: int = 0) -> VqNetwork:
    """Two pixels a token; evaluation mode, without gradients."""
    torch.manual_seed(seed)
    return VqNetwork(TINY_VQ).eval().requires_grad_(False)


def save_tiny_t5(folder: Path, seed: int = 0) -> Path:
    """Width 16, both halves as the published folder holds them, and a tokenizer with a token a letter."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    special = ["<pad>", "</s>", "<unk>"]
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    scores = [(word, 0.0) for word in special] + [(letter, -2.0) for letter in letters]
    T5Tokenizer(vocab=scores, extra_ids=0).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(scores), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, initializer_factor=0.5,
    )  # fmt: skip
    torch.manual_seed(seed)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def save_tiny_clip(folder: Path, seed: int = 0, width: int = 24) -> Path:
    """Both halves, as the published folder holds them; the vision half of width 24 reads patches of 16 pixels."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = sizes | {"image_size": 224, "patch_size": 16}, sizes | {"vocab_size": 40, "eos_token_id": 2}
    torch.manual_seed(seed)
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).save_pretrained(folder)
    return folder


def save_tiny_dinov2(folder: Path, seed: int = 0, width: int = 24, patch: int = 14) -> Path:
    """Width 24, patches of 14 pixels, trained for pictures of 5 x 5 patches."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=5 * patch,
        patch_size=patch,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(seed)
    Dinov2Model(config).save_pretrained(folder)
    return folder
