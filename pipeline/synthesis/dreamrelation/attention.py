"""Cross-attention in which each subject's image tokens act inside its box only (spec/dreamrelation.md section 5).

Shapes: B samples, N cells of a layer's grid, n subjects, Q tokens a subject, C channels, H heads. The UNet's batch is
B, or 2 B with guidance: the unconditional half first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Subjects:
    """What cross-attention needs to know of the subjects: the same at every step, so it is worked out once a call.

    ``keys`` and ``values`` [B, n Q, C] by layer, the adapter's scale already in the values; ``masks`` by the number of
    cells of a grid.
    """

    keys: dict[str, Tensor]
    values: dict[str, Tensor]
    masks: dict[int, BoxMasks]


@dataclass(frozen=True)
class BoxMasks:
    """``allowed`` [B, 1, N, n Q]: which tokens a cell may attend to; ``covered`` [B, 1, N, 1]: 1 where a box is."""

    allowed: Tensor
    covered: Tensor


class SelfAttention(AttnProcessor2_0):
    """Plain self-attention; it takes the keyword that the UNet hands to every layer."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, subjects: Any = None, **kwargs: Any) -> Tensor:
        return super().__call__(attn, hidden_states, *args, **kwargs)


class SubjectAttention:
    """Text attention, to which the conditional half adds what the subjects' tokens say inside their boxes.

    Outside of all boxes, and in the unconditional half, this is exactly plain SDXL.
    """

    def __init__(self, layer: str):
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        subjects: Subjects | None = None,
    ) -> Tensor:
        def heads(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = heads(attn.to_q(hidden_states))  # [B or 2 B, H, N, C / H]
        keys, values = heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        attended = functional.scaled_dot_product_attention(query, keys, values)
        if subjects is not None:
            keys, values = heads(subjects.keys[self.layer]), heads(subjects.values[self.layer])
            masks = subjects.masks[hidden_states.shape[1]]
            unconditional = len(query) - len(keys)
            seen = functional.scaled_dot_product_attention(query[unconditional:], keys, values, attn_mask=masks.allowed)
            added = attended[unconditional:] + seen * masks.covered
            attended = torch.cat([attended[:unconditional], added]) if unconditional else added
        attended = attended.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](attended))


def box_cells(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Which cells [B, n, rows * columns] of a grid each box [B, n, 4] covers, as booleans, row by row.

    A box grows outward to whole cells. In float32 whatever the model runs in: bfloat16 would move edges by a cell.
    """
    left, top, right, bottom = boxes.float()[..., None].unbind(2)  # [B, n, 1] each
    x, y = torch.arange(columns, device=boxes.device), torch.arange(rows, device=boxes.device)
    across = (x >= (left * columns).floor()) & (x < (right * columns).ceil())
    down = (y >= (top * rows).floor()) & (y < (bottom * rows).ceil())
    return (down[..., :, None] & across[..., None, :]).flatten(2)


def box_masks(boxes: Tensor, rows: int, columns: int, queries: int, dtype: torch.dtype) -> BoxMasks:
    """The masks of boxes [B, n, 4] on one grid for ``queries`` tokens a subject."""
    inside = box_cells(boxes, rows, columns).transpose(1, 2)  # [B, N, n]
    covered = inside.any(dim=2, keepdim=True)
    # a cell without any token to attend to would be 0 / 0: it attends to all of them, and ``covered`` drops the result
    allowed = (inside | ~covered).repeat_interleave(queries, dim=2)
    return BoxMasks(allowed[:, None], covered[:, None].to(dtype))


def grids(rows: int, columns: int, levels: int) -> list[tuple[int, int]]:
    """(rows, columns) of a UNet's levels from the size of its latents: each level halves the one above, rounding up."""
    sizes = [(rows, columns)]
    for _ in range(levels - 1):
        rows, columns = -(-rows // 2), -(-columns // 2)
        sizes.append((rows, columns))
    return sizes


def image_prompt_layers(processors: Sequence[str]) -> dict[int, str]:
    """Position in the UNet's ``attn_processors`` -> name of each cross-attention: how the adapter's file counts them.

    The order is diffusers' own: down, up, then mid block (spec/dreamrelation.md section 2.1).
    """
    return {i: name for i, name in enumerate(processors) if name.endswith("attn2.processor")}
