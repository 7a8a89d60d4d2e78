"""The settings of a published network, found from the shapes of its weights.

What shapes cannot tell comes from the command line that published trainers store with the weights, and what that does
not tell from a start such as ``config.released``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from data_schemas.errors import UserError
from tokenar.model.config import SIZES, ModelConfig

NULL_IMAGES = "img_uncond_embedding"
"""The table that only models with images in their input have; LlamaGen's text-to-image checkpoint lacks it."""


def network_config(
    weights: Mapping[str, Tensor],
    start: ModelConfig,
    told: Mapping[str, Any],
    changes: Mapping[str, object],
    source: str,
) -> ModelConfig:
    """The settings of the network that ``weights`` belong to.

    ``told`` is the trainer's stored command line, which may be empty. ``changes`` are settings that win over all
    others. UserError, beginning with ``source``, if the shapes fit no network or leave something open.
    """
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    try:
        values = _sizes(shapes, told, changes, source) | _teacher(shapes, told)
        if NULL_IMAGES in shapes:
            values |= _images(shapes, start, told, changes, source)
        inner_width, _ = shapes["layers.0.feed_forward.w1.weight"]
    except (LookupError, ValueError, ZeroDivisionError) as error:  # ValueError: a shape of other dimensions
        raise UserError(
            f"{source}: not the weights of TokenAR or of LlamaGen's text-to-image model ({error}); give such a file"
        ) from error
    config = ModelConfig.parse(start.model_dump() | values | dict(changes), source)
    if config.feed_forward_width != inner_width:
        inner = int(8 * config.width / 3)
        other = {"feed_forward_multiple": 1, "feed_forward_multiplier": (inner_width + 0.5) / inner}
        config = ModelConfig.parse(config.model_dump() | other, source)
    if config.canvas_problem:
        raise UserError(f"{source}: {config.canvas_problem} (--set rotary_layout=grid)")
    return config


def _sizes(
    shapes: Mapping[str, list[int]], told: Mapping[str, Any], changes: Mapping[str, object], source: str
) -> dict[str, Any]:
    """Widths and numbers of layers, heads and text tokens."""
    vocabulary, width = shapes["tok_embeddings.weight"]
    text_tokens, text_width = shapes["cls_embedding.uncond_embedding"]
    layers = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    rows, _ = shapes["layers.0.attention.wqkv.weight"]
    known = [heads for depth, heads, wide in SIZES.values() if (depth, wide) == (layers, width)]
    heads = changes.get("heads") or next(iter(known), None)
    if not isinstance(heads, int):
        raise UserError(
            f"{source}: {layers} layers of width {width} are no published size, so the number of heads is not known; "
            "give it with tokenar-import --set heads=N"
        )
    key_values, left = divmod((rows - width) * heads, 2 * width)
    if left or not 1 <= key_values <= heads:
        raise ValueError(f"{rows} rows of layers.0.attention.wqkv.weight do not split into {heads} heads")
    return {
        "vocabulary": vocabulary, "width": width, "text_tokens": text_tokens, "text_width": text_width,
        "layers": layers, "heads": heads, "kv_heads": None if key_values == heads else key_values,
    }  # fmt: skip


def _teacher(shapes: Mapping[str, list[int]], told: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher whose features the alignment layer predicts. Several layers are kept in the file, and unused."""
    alone = "alignment.weight" in shapes
    return {"distill": ("clip" if told.get("distill_mode") == "clip" else "dinov2") if alone else None}


def _images(
    shapes: Mapping[str, list[int]],
    start: ModelConfig,
    told: Mapping[str, Any],
    changes: Mapping[str, object],
    source: str,
) -> dict[str, Any]:
    """Numbers of images, of their tokens and of instruct tokens, and whether references are predicted again."""
    rows, width = shapes[NULL_IMAGES]
    index_rows = shapes["ref_index_embeddings.weight"][0] if "ref_index_embeddings.weight" in shapes else 0
    sets, instruct = 1, 0
    if "instruct_token_embeddings.weight" in shapes:
        sets, instruct = (
            shapes["instruct_token_embeddings.weight"][0],
            (shapes["instruct_token_embeddings.weight"][1] // width),
        )
    blocks = index_rows or (sets if sets > 1 else rows // _image_tokens(start, told, changes))
    tokens = rows // max(1, blocks)
    grid = isqrt(tokens)
    if blocks < 1 or tokens * blocks != rows or grid * grid != tokens:
        raise UserError(
            f"{source}: {NULL_IMAGES} has {rows} rows, which are no whole number of square images of "
            f"{tokens} tokens; give the side of an image in tokens with tokenar-import --set grid=N"
        )
    mode = "special" if sets > 1 else "casual"
    repeated = told.get("concat_target")
    repeated = repeated if isinstance(repeated, int) else start.identity_disentanglement
    # The release's positions have no room for the references' copies beside one or two source images.
    room = blocks > 2 or (blocks > 1 and changes.get("rotary_layout", start.rotary_layout) == "grid")
    return {
        "max_references": max(1, blocks - 1), "background": blocks > 1, "grid": grid, "instruct_tokens": instruct,
        "instruct_mode": mode, "index_embedding": index_rows > 0,
        "identity_disentanglement": bool(repeated) and mode == "casual" and room,
    }  # fmt: skip


def _image_tokens(start: ModelConfig, told: Mapping[str, Any], changes: Mapping[str, object]) -> int:
    """Tokens of an image, where no table has a row for each image."""
    side, pixels = told.get("image_size"), told.get("downsample_size")
    grid = side // pixels if isinstance(side, int) and isinstance(pixels, int) and 0 < pixels <= side else start.grid
    given = changes.get("grid", grid)
    return max(1, given) ** 2 if isinstance(given, int) else start.image_tokens
