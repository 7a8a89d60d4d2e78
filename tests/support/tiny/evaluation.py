"""Tiny random encoders of an evaluation, saved in the layouts in which the real ones are published."""

from __future__ import annotations

import io
import json
from pathlib import Path
from unittest.mock import patch

import timm
import torch
from safetensors.torch import save_file

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def save_tiny_vit(folder: Path, seed: int = 0) -> Path:
    """A folder as timm publishes it: config.json and model.safetensors."""
    torch.manual_seed(seed)
    net = timm.create_model("vit_small_patch16_224.dino", num_classes=0, **TINY_VIT)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder.mkdir(parents=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    data = {"input_size": [3, 32, 32], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop_pct": 1.0,
            "interpolation": "bicubic", "fixed_input_size": True, "num_classes": 0, "first_conv": "patch_embed.proj",
            "classifier": "head"}  # fmt: skip
    config = {"architecture": "vit_small_patch16_224", "num_classes": 0, "num_features": 24, "global_pool": "token",
              "model_args": TINY_VIT, "pretrained_cfg": data}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Width 16, 32-pixel pictures, a tokenizer of letters, 16 positions of text."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    side = {"shortest_edge": 32}, {"height": 32, "width": 32}
    CLIPImageProcessor(size=side[0], crop_size=side[1]).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}  # fmt: skip
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for parameter in model.parameters():
        if parameter.dim():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def save_backbone(path: Path, kind: str = "alexnet", seed: int = 0) -> Path:
    """A torchvision classifier's weights without its classifier, which LPIPS does not read."""
    from torchvision import models

    torch.manual_seed(seed)
    features = getattr(models, kind)(weights=None).features
    torch.save({f"features.{name}": tensor for name, tensor in features.state_dict().items()}, path)
    return path


def save_inception(path: Path, seed: int = 0) -> Path:
    """torch-fidelity's Inception with drawn weights, about 95 MB."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(seed)
    with patch.object(FeatureExtractorInceptionV3, "load_state_dict"):  # it has no way to be made without weights
        net = FeatureExtractorInceptionV3("drawn", ["2048"], feature_extractor_weights_path=nothing)
    torch.save(net.state_dict(), path)
    return path
