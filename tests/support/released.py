"""The released program's settings as our configuration, and its cases as our inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import torch
from safetensors.torch import load_file

from tokenar.config import ModelConfig
from tokenar.model import TokenAR


def config_of(settings: dict[str, Any], itd: bool, **changes: Any) -> ModelConfig:
    """A case's "config" as ours."""
    background = settings["multi_cond"]
    values = {
        "layers": settings["n_layer"], "heads": settings["n_head"], "kv_heads": settings["n_kv_head"],
        "width": settings["dim"], "vocabulary": settings["vocab_size"], "grid": round(settings["block_size"] ** 0.5),
        "max_references": settings["max_ref_num"] - background, "background": background,
        "text_tokens": settings["cls_token_num"], "text_width": settings["caption_dim"],
        "null_embeddings": "frozen", "instruct_tokens": settings["instruct_token_num"],
        "instruct_mode": settings["instruct_token_mode"] or "casual",
        "index_embedding": settings["ref_index_embed"], "background_index": "last_reference",
        "index_at_inference": False, "identity_disentanglement": itd, "rotary_layout": "canvas",
        "canvas_targets": settings["max_edited_num"], "rotary_base": settings["rope_base"],
        "feed_forward_multiple": settings["multiple_of"],
        "feed_forward_multiplier": settings["ffn_dim_multiplier"], "norm_eps": settings["norm_eps"],
        "distill": settings["distill_mode"], "dropout": settings["resid_dropout_p"],
        "text_dropout": settings["token_dropout_p"],
    }  # fmt: skip
    return ModelConfig.model_validate(values | changes)


def net_of(case: Path, config: ModelConfig) -> TokenAR:
    """The case's model; its weights name every key and no other."""
    net = TokenAR(config)
    weights = load_file(golden.beside(case, "../" + golden.read(case)["weights"]))
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    return net


def sources_of(data: dict[str, torch.Tensor], config: ModelConfig) -> torch.Tensor:
    """Source codes [B, blocks, N]."""
    return data["input_img_indices"].long().unflatten(1, (-1, config.image_tokens))
