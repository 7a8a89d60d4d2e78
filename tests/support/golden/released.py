"""The released program's settings as our configuration, and its cases as our inputs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import golden
from tokenar.config import SampleConfig
from tokenar.model.config import ModelConfig
from tokenar.model.transformer import TokenAR
from tokenar.sample.decoder import Decoder


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
        "picture_instruct": "last_reference",
        "index_at_inference": False, "identity_disentanglement": itd, "rotary_layout": "canvas",
        "canvas_targets": settings["max_edited_num"], "rotary_base": settings["rope_base"],
        "feed_forward_multiple": settings["multiple_of"],
        "feed_forward_multiplier": settings["ffn_dim_multiplier"], "norm_eps": settings["norm_eps"],
        "distill": settings["distill_mode"], "dropout": settings["resid_dropout_p"],
        "text_dropout": settings["token_dropout_p"],
    }  # fmt: skip
    return ModelConfig.model_validate(values | changes)


def config_of_keys(model: dict[str, Any]) -> ModelConfig:
    """The "model" of a list of state-dict keys as ours; the list tells less than a case does."""
    heads = {"n_kv_head": model.get("n_kv_head"), "multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5}
    others = {"rope_base": 10000, "resid_dropout_p": 0.1, "token_dropout_p": 0.1}
    return config_of(heads | others | model, itd=model["max_edited_num"] > 1)


def table_rows(table: dict[str, Any], grid: int) -> int:
    """Rows of the release's rotary table, more than a sequence uses (docs/differences.md, "Canvas positions")."""
    blocks, side = table["max_ref_num"], isqrt(table["max_ref_num"])
    if not table["multi_cond"]:
        return 2 * grid**2 + table["cls_token_num"]
    if blocks <= 2:
        return 3 * grid**2 + table["cls_token_num"]
    targets = isqrt(table["max_edited_num"]) ** 2
    return (side**2 + targets) * grid**2 + table["cls_token_num"] + table["instruct_token_num"]


def angle_error(config: ModelConfig) -> float:
    """How far the release's table may be from the exact one, in any of its numbers.

    It is made in float32, and processors round its steps differently. In units of 2^-24, half the last bit, relative to
    an angle: the exponent 2k / (D/2) is rounded, which moves base^exponent by the exponent's logarithm times as much
    (ln f x f is at most 1/e of the first angle, so at most 1/e here); the power is right to its last bit (2), its
    reciprocal and the product with the row to half of it (1 + 1). All of that is 4.4 at most. An angle can be as large
    as the last row. Cosine and sine, right to their last bit, add 2^-23.
    """
    rows = config.grid * (sum(config.canvas_sides) + (config.source_blocks == 2))  # 2 + 1 sides, and a gap of one
    return 4.4 * 2**-24 * (rows - 1) + 2**-23


def net_of(case: Path, config: ModelConfig) -> TokenAR:
    """The case's model; its weights name every key and no other."""
    net = TokenAR(config)
    weights = load_file(golden.near(case, golden.read(case)["weights"]))
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    return net


def sources_of(data: dict[str, torch.Tensor], config: ModelConfig) -> torch.Tensor:
    """Source codes [B, blocks, N]."""
    return data["input_img_indices"].long().unflatten(1, (-1, config.image_tokens))


def generation_case(
    case: Path, guidance: float | None = None, device: torch.device | str = "cpu"
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """(settings, tensors, iterator of (tokens, logits) as far as the case goes), drawn on a device."""
    told = golden.read(case)
    data = {name: tensor.to(device) for name, tensor in golden.tensors(case).items()}
    scale = told["cfg_scale"] if guidance is None else guidance
    attention = "causal" if told["attention"] == "causal" else "block"
    index = told["variant"] == "index_embedding_applied"
    config = config_of(told["config"], told["itd_decode"], source_attention=attention, index_at_inference=index)
    net = net_of(case, config).eval().to(device)
    sampling = told["sampling"]
    settings = SampleConfig(
        guidance=scale, guided_tokens=told["cfg_interval"] + 2 if told["cfg_interval"] >= 0 else None,
        guided_from="first", copies="drawn", temperature=sampling["temperature"] if sampling["sample_logits"] else 0,
        top_k=sampling["top_k"], top_p=sampling["top_p"], compile=False,  # takes longer than such a model draws
    )  # fmt: skip
    assert net.layout(config.max_references).prefix == told["prefix_length"]
    assert config.image_tokens == told["edited_tokens_are_last"]
    sources = sources_of(data, config)
    decoder = Decoder(net, len(sources), config.max_references, settings)
    steps = decoder.decode(
        sources, data["text_emb"], range(len(sources)),
        instruct=data["instruct_indices"].long() if "instruct_indices" in data else None,
        without_images=torch.tensor(told["input_mode"], device=device) == 0,
    )  # fmt: skip
    steps = ((token.clone(), logits.clone()) for token, logits in steps)  # the decoder writes over them
    return told, data, islice(steps, told["max_new_tokens"])
