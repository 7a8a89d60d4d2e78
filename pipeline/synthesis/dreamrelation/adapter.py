"""The MS-Diffusion adapter: the resampler, and keys and values of the image prompt for every cross-attention layer.

Parameter names are those of the published file, joined with dots.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_schemas.errors import UserError
from pipeline.synthesis.dreamrelation.attention import Subjects, box_masks, grids, image_prompt_layers
from pipeline.synthesis.dreamrelation.files import read_tensors
from pipeline.synthesis.dreamrelation.resampler import Resampler, ResamplerSizes

DUMMY_TOKENS = 4
GROUPS = ("image_proj", "dummy_image_tokens", "ms_adapter")


class KeysValues(nn.Module):
    """The projections to keys and values of the image prompt in one layer with ``channels`` channels."""

    def __init__(self, token_width: int, channels: int):
        super().__init__()
        self.to_k_ip = nn.Linear(token_width, channels, bias=False)
        self.to_v_ip = nn.Linear(token_width, channels, bias=False)


class Adapter(nn.Module):
    """All tensors of the published ``ms_adapter.bin``, made for one UNet (diffusers' UNet2DConditionModel).

    ``dummy_image_tokens`` [1, 4, token width] are loaded but not used (docs/differences.md, "Dummy tokens").
    """

    def __init__(self, unet: Any, sizes: ResamplerSizes, image_width: int, phrase_width: int):
        super().__init__()
        token_width = unet.config.cross_attention_dim
        self.layers = image_prompt_layers(list(unet.attn_processors))
        self.levels = len(unet.config.block_out_channels)
        self.image_proj = Resampler(sizes, image_width, phrase_width, token_width)
        self.dummy_image_tokens = nn.Parameter(torch.zeros(1, DUMMY_TOKENS, token_width))
        channels = {i: unet.get_submodule(name.removesuffix(".processor")).inner_dim for i, name in self.layers.items()}
        self.ms_adapter = nn.ModuleDict({str(i): KeysValues(token_width, width) for i, width in channels.items()})

    def subjects(self, tokens: Tensor, boxes: Tensor, scale: float | Tensor, latent_size: tuple[int, int]) -> Subjects:
        """What cross-attention needs, made from image tokens [B, n, Q, D] and boxes [B, n, 4].

        ``scale`` weights the image branch: one number, or one for each subject [n]. ``latent_size`` is the latents'
        rows and columns. A box of zeros covers no cell, so samples with fewer subjects are padded with it.
        """
        queries, weights = tokens.shape[2], torch.as_tensor(scale, dtype=tokens.dtype, device=tokens.device)
        weights = weights.expand(tokens.shape[1]).repeat_interleave(queries)[:, None]  # [n Q, 1]
        flat = tokens.flatten(1, 2)
        keys, values = {}, {}
        for i, name in self.layers.items():
            layer: Any = self.ms_adapter[str(i)]
            keys[name], values[name] = layer.to_k_ip(flat), layer.to_v_ip(flat) * weights
        masks = {r * c: box_masks(boxes, r, c, queries, tokens.dtype) for r, c in grids(*latent_size, self.levels)}
        return Subjects(keys, values, masks)


def load_adapter(path: Path, unet: Any, sizes: ResamplerSizes, image_width: int, phrase_width: int) -> Adapter:
    """The adapter for a UNet from a ``.bin`` or ``.safetensors`` file, in the file's precision, on the CPU.

    A ``.safetensors`` file has the same tensors under the same names, joined with dots: image_proj.*,
    dummy_image_tokens, ms_adapter.*. Raises UserError if the file is not an adapter, or was made for other models.
    """
    tensors = read_adapter(path)
    with torch.device("meta"):
        adapter = Adapter(unet, sizes, image_width, phrase_width)
    expected = adapter.state_dict()
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        what = f"lacks {len(missing)} ({missing[0]})" if missing else f"has {len(extra)} too many ({extra[0]})"
        raise UserError(f"adapter {path}: of {len(expected)} tensors it {what}; give the ms_adapter of MS-Diffusion")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"adapter {path}: {name} is {_size(tensor)}, but this base and image encoder need "
                f"{_size(expected[name])}; give the adapter that was trained with them"
            )
    adapter.load_state_dict(tensors, assign=True)
    return adapter.requires_grad_(False).eval()


def read_adapter(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter file by dotted name."""
    stored = read_tensors(path, "adapter")
    if path.suffix == ".safetensors":
        return stored
    if not isinstance(stored, dict) or set(stored) != set(GROUPS):
        content = ", ".join(sorted(map(str, stored))[:4]) if isinstance(stored, dict) else type(stored).__name__
        raise UserError(
            f"adapter {path}: holds {content} instead of {', '.join(GROUPS)}; give the ms_adapter.bin of MS-Diffusion"
        )
    tensors: dict[str, Any] = {}
    for group, values in stored.items():
        if isinstance(values, dict):
            tensors |= {f"{group}.{name}": value for name, value in values.items()}
        else:
            tensors[group] = values
    wrong = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(f"adapter {path}: {wrong[0]} is no tensor; give the ms_adapter.bin of MS-Diffusion")
    return tensors


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
