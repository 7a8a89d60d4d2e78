"""Measures what the target tokens attend to in every layer (paper, Figs. 3 and 9).

Shape legend: B batch, T tokens, D width, H heads, L layers, R references, N tokens an image, E target blocks, G target
regions, S source segments; g is the side of a picture's token grid.

The model runs once over a sequence with its whole target, as in training. The attention kernels do not return their
weights, so a hook computes the softmax again from each Attention's inputs. It does so only for the query rows that
predict target tokens (position p predicts token p + 1), a few rows at a time, and keeps only sums over them, so that no
[T, T] matrix is in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.files import write_atomically
from tokenar.data.samples import Batch
from tokenar.model.layers import Attention
from tokenar.model.positions import Layout
from tokenar.model.transformer import TokenAR

CHUNK = 64
"""Query rows in one chunk. At GPT-XL size, with 8431 positions and 20 heads, their float32 weights take 43 MB."""


# Attention weights


def attention_rows(
    attention: Attention, x: Tensor, rotary: Tensor, mask: Tensor | None, rows: Tensor, chunk: int = CHUNK
) -> Iterator[tuple[Tensor, Tensor]]:
    """The attention weights softmax(q k^T / sqrt(D/H)) of the query positions ``rows``, in chunks.

    Yields (the next c of ``rows``, their weights [B, H, c, T] float32). ``x`` [B, T, D], ``rotary`` and ``mask`` are
    the inputs of ``attention``; without a mask attention is causal. Masked positions have weight exactly 0.
    """
    q, k, _ = attention.project(x, rotary)
    q = q[:, :, rows].float() / math.sqrt(attention.head_width)
    k = k.float().repeat_interleave(attention.heads // attention.kv_heads, dim=1)
    position = torch.arange(x.shape[1], device=x.device)
    for chunk_rows, queries in zip(rows.split(chunk), q.split(chunk, dim=2), strict=True):
        visible = position <= chunk_rows[:, None] if mask is None else mask[..., chunk_rows, :]
        yield chunk_rows, (queries @ k.mT).masked_fill_(~visible, -math.inf).softmax(-1)


@contextmanager
def hooked(net: TokenAR, read: Callable[[Attention, tuple[Any, ...]], None]) -> Iterator[None]:
    """Inside the block, ``read`` is called with each Attention module and its arguments before the module runs."""
    hooks = [module.register_forward_pre_hook(read) for module in net.modules() if isinstance(module, Attention)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# Target regions and source segments


def source_segments(layout: Layout) -> dict[str, int]:
    """Name and length in tokens of every segment of the sequence that target tokens can attend to, in order.

    Models with identity disentanglement have a copy of each reference before the picture. The picture's last token is
    left out, because no token comes after it. The lengths add up to T.
    """
    n, config = layout.image_tokens, layout.config
    lengths = {f"reference {i}": n for i in range(layout.references)}
    lengths |= {"background": n} if config.background else {}
    lengths |= {"text": config.text_tokens}
    lengths |= {"instruct tokens": config.instruct_tokens} if config.instruct_tokens else {}
    lengths |= {f"copy of reference {i}": n for i in range(layout.reference_copies)}
    return lengths | {"picture so far": n - 1}


def target_regions(layout: Layout, boxes: Sequence[Sequence[float]] | None) -> dict[str, Tensor]:
    """Name of each region -> mask of the target tokens that are in it, [E N] bool.

    The regions are the reference copies, if the model has them, and the picture. ``boxes`` has for each reference the
    box of its subject, (left, top, right, bottom) in fractions of the picture. With boxes there is also a region for
    each subject, and "rest" for the picture outside of all boxes. A token is in every box that its centre is in. A box
    that contains no centre has the nearest token.
    """
    n, grid, blocks = layout.image_tokens, layout.config.grid, len(layout.target_slots)
    block = torch.arange(blocks).repeat_interleave(n)
    regions = {f"copy of reference {i}": block == i for i in range(layout.reference_copies)}
    regions["picture"] = block == blocks - 1
    if boxes is None:
        return regions
    subjects = [_inside(top, bottom, grid)[:, None] & _inside(left, right, grid) for left, top, right, bottom in boxes]
    for i, cells in enumerate(subjects):
        regions[f"subject {i}"] = torch.cat([torch.zeros((blocks - 1) * n, dtype=torch.bool), cells.flatten()])
    rest = regions["picture"] & ~torch.stack([regions[f"subject {i}"] for i in range(len(boxes))]).any(0)
    return regions | ({"rest": rest} if rest.any() else {})


def _inside(low: float, high: float, grid: int) -> Tensor:
    """Which of ``grid`` cells in a row have their centre between two fractions, [grid] bool; at least one cell."""
    centres = (torch.arange(grid) + 0.5) / grid
    inside = (centres >= low) & (centres < high)
    inside[(centres - (low + high) / 2).abs().argmin()] |= not inside.any()
    return inside


# Measuring


@dataclass
class AttentionMaps:
    """What the target tokens of one sample attend to, float32. The axis H exists only if the heads were kept.

    mass    [L, (H,) G, S]               share of a region's attention that goes to each segment; sums to 1 over S
    maps    [L, (H,) G, sources, g, g]   share that goes to each token of a source; sums over g x g to the source's mass
    looks   [L, (H,) E, S, g, g]         share of each target token's attention that goes to each segment

    Sources are the references and the background. The attention of a target token is that of the query row which
    predicts it, one position earlier. The values of a region are means over its tokens.
    """

    regions: list[str]
    segments: list[str]
    mass: Tensor
    maps: Tensor
    looks: Tensor

    def averaged(self) -> AttentionMaps:
        """The mean over the heads, if they were kept; otherwise the same maps."""
        if self.mass.dim() == 3:
            return self
        return AttentionMaps(self.regions, self.segments, self.mass.mean(1), self.maps.mean(1), self.looks.mean(1))

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write the arrays to a safetensors file. Its metadata has the names of the axes and ``about`` as JSON."""
        arrays = {"mass": self.mass, "maps": self.maps, "looks": self.looks}
        axes = {name: ["layer", *(["head"] if self.mass.dim() == 4 else []), *rest] for name, rest in AXES.items()}
        names = {"regions": self.regions, "segments": self.segments, "axes": axes, **about}
        metadata = {"attention": json.dumps(names, ensure_ascii=False)}
        contiguous = {name: array.contiguous() for name, array in arrays.items()}
        write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))


AXES = {
    "mass": ["region", "segment"],
    "maps": ["region", "source", "row", "column"],
    "looks": ["target block", "segment", "row", "column"],
}


@torch.inference_mode()
def measure(
    net: TokenAR,
    batch: Batch,
    boxes: Sequence[Sequence[float]] | None = None,
    *,
    heads: bool = False,
    index: bool = True,
    chunk: int = CHUNK,
) -> AttentionMaps:
    """Run one sample (B = 1) with its whole target and measure the attention of every layer.

    The result is averaged over the heads unless ``heads`` is set. ``index`` says whether the index embedding is added;
    some models are trained with it and sampled without it.
    """
    layout = net.layout_of(batch.sources)
    target = net.target_tokens(batch.sources, batch.picture)[:, :-1]
    x = net.embed(net.embed_prefix(batch.sources, batch.text, index=index), target, layout, index)
    # TokenAR.whole would move masked padding to the end, so that it needs no mask. Here every token must stay in place.
    mask = net.mask(layout, x.shape[1], batch.text_mask, None)
    regions, segments = target_regions(layout, boxes), source_segments(layout)
    weights = torch.stack([region / region.sum() for region in regions.values()]).to(x.device)  # [G, E N]
    first = layout.prefix - 1
    rows = torch.arange(first, x.shape[1], device=x.device)
    maps, looks = [], []

    def read(attention: Attention, arguments: tuple[Any, ...]) -> None:
        inputs, rotary, _, attention_mask, _ = arguments
        to_sources: Tensor | float = 0.0
        shares = []
        for chunk_rows, attended in attention_rows(attention, inputs, rotary, attention_mask, rows, chunk):
            attended = attended[0] if heads else attended[0].mean(0, keepdim=True)  # [H or 1, c, T]
            to_sources = to_sources + weights[:, chunk_rows - first] @ attended[..., : layout.source_tokens]
            by_segment = attended.split(list(segments.values()), dim=-1)
            shares.append(torch.stack([segment.sum(-1) for segment in by_segment], dim=-1))
        assert isinstance(to_sources, Tensor)
        maps.append(to_sources.cpu())  # [H or 1, G, sources N]
        looks.append(torch.cat(shares, dim=1).cpu())  # [H or 1, E N, S]

    with hooked(net, read):
        net.hidden(x, net.tables(layout)[0][: x.shape[1]], mask=mask)
    by_token, grid = torch.stack(looks), (layout.config.grid, layout.config.grid)
    measured = (
        weights.cpu() @ by_token,
        torch.stack(maps).unflatten(-1, (len(layout.source_slots), *grid)),
        by_token.mT.unflatten(-1, (len(layout.target_slots), *grid)).transpose(-3, -4),
    )
    return AttentionMaps(list(regions), list(segments), *(a if heads else a.squeeze(1) for a in measured))


def identity(maps: AttentionMaps, kind: str = "reference") -> Tensor | None:
    """Of the attention that subjects pay to references, the share that goes to their own one, by layer: [L].

    It is a mean over the subjects, and 1/R is chance. With ``kind`` "copy of reference" it is about the reference
    copies before the picture instead. None without boxes, with a single reference, or if the model has no copies.
    """
    subjects = [i for i, name in enumerate(maps.regions) if name.startswith("subject ")]
    seen = [i for i, name in enumerate(maps.segments) if name.startswith(f"{kind} ")]
    if len(seen) < 2 or len(subjects) != len(seen):
        return None
    table = maps.averaged().mass[:, subjects][:, :, seen]  # [L, R, R]
    return (table.diagonal(dim1=1, dim2=2) / table.sum(-1).clamp_min(1e-12)).mean(-1)


def checked_boxes(info: Mapping[str, Any], references: int, sample_id: str) -> list[list[float]] | None:
    """The sample's boxes, one for each reference; None if it has none. UserError if they are not valid."""
    boxes = info.get("boxes")
    if boxes is None:
        return None
    fits = isinstance(boxes, list) and len(boxes) == references and all(map(_is_box, boxes))
    if not fits:
        raise UserError(
            f"sample {sample_id}: boxes {boxes!r} are not one (left, top, right, bottom) in fractions for each of "
            f"{references} references; make the shard again"
        )
    return boxes


def _is_box(box: object) -> bool:
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(number, int | float) for number in box)):
        return False
    left, top, right, bottom = (round(number, 6) for number in box)
    return 0 <= left < right <= 1 and 0 <= top < bottom <= 1
