"""Cross-attention in which the image tokens of each subject only act inside its box.

Shapes: B samples, N cells of a layer's grid, n subjects, Q tokens a subject, C channels, H heads. The UNet's batch is
B, or 2 B with guidance, where the unconditional half comes first.
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
    """What cross-attention needs to know about the subjects.

    It is the same at every step, so it is computed once a call.

    ``keys`` and ``values`` [B, n Q, C] are by layer; the values already contain the adapter's scale. ``masks`` are by a
    grid's number of cells.
    """

    keys: dict[str, Tensor]
    values: dict[str, Tensor]
    masks: dict[int, BoxMasks]


@dataclass(frozen=True)
class BoxMasks:
    """``allowed`` [B, 1, N, n Q]: which tokens a cell may attend to; ``covered`` [B, 1, N, 1]: 1 inside any box."""

    allowed: Tensor
    covered: Tensor


class SelfAttention(AttnProcessor2_0):
    """Plain self-attention that accepts the keyword ``subjects``, which the UNet passes to every layer."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, subjects: Any = None, **kwargs: Any) -> Tensor:
        return super().__call__(attn, hidden_states, *args, **kwargs)


class SubjectAttention:
    """Text attention, to which the conditional half adds attention to the subjects' tokens inside their boxes.

    Outside of all boxes, and in the unconditional half, the result is exactly that of plain SDXL.
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
            from_subjects = functional.scaled_dot_product_attention(
                query[unconditional:], keys, values, attn_mask=masks.allowed
            )
            added = attended[unconditional:] + from_subjects * masks.covered
            attended = torch.cat([attended[:unconditional], added]) if unconditional else added
        attended = attended.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](attended))


def box_cells(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Which cells [B, n, rows * columns] of a grid each box [B, n, 4] covers, as booleans, row by row.

    A box grows outward to whole cells. It is computed in float32 (docs/differences.md, "Masks from boxes").
    """
    left, top, right, bottom = boxes.float()[..., None].unbind(2)  # [B, n, 1] each
    x, y = torch.arange(columns, device=boxes.device), torch.arange(rows, device=boxes.device)
    across = (x >= (left * columns).floor()) & (x < (right * columns).ceil())
    down = (y >= (top * rows).floor()) & (y < (bottom * rows).ceil())
    return (down[..., :, None] & across[..., None, :]).flatten(2)


def box_masks(boxes: Tensor, rows: int, columns: int, queries: int, dtype: torch.dtype) -> BoxMasks:
    """The masks of boxes [B, n, 4] on one grid, with ``queries`` tokens a subject."""
    inside = box_cells(boxes, rows, columns).transpose(1, 2)  # [B, N, n]
    covered = inside.any(dim=2, keepdim=True)
    # softmax over no token would be 0 / 0, so a cell outside all boxes attends to all, and ``covered`` drops the result
    allowed = (inside | ~covered).repeat_interleave(queries, dim=2)
    return BoxMasks(allowed[:, None], covered[:, None].to(dtype))


def grids(rows: int, columns: int, levels: int) -> list[tuple[int, int]]:
    """(rows, columns) of each level of a UNet from those of its latents; each level halves the last, rounding up."""
    sizes = [(rows, columns)]
    for _ in range(levels - 1):
        rows, columns = -(-rows // 2), -(-columns // 2)
        sizes.append((rows, columns))
    return sizes


def image_prompt_layers(processors: Sequence[str]) -> dict[int, str]:
    """Position -> name of each cross-attention in the UNet's ``attn_processors``.

    The adapter's file uses these positions. Their order is that of diffusers: down blocks, up blocks, then the mid
    block.
    """
    return {i: name for i, name in enumerate(processors) if name.endswith("attn2.processor")}
