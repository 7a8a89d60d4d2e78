"""Where each part of a target looks, layer by layer (paper, Figs. 3 and 9).

Shape legend: B batch, T tokens, D width, H heads, K heads of keys and values, L layers, R references, N tokens an
image, E target blocks, G target regions, S source segments; g is the side of a picture's token grid.

The whole target is given, and the model runs over it once, as in training. From what goes into each Attention the
softmax is computed again for the query rows that predict target tokens (position p predicts token p + 1;
spec/tokenar.md section 3), a few rows at a time, and only sums over them are kept: no [T, T] matrix exists.
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
from tokenar.model.positions import Layout, apply_rotary
from tokenar.model.transformer import TokenAR

CHUNK = 64
"""Query rows at a time: at GPT-XL size, 8431 positions and 20 heads, their float32 weights take 43 MB."""


# The softmax again


def attention_rows(
    attention: Attention, x: Tensor, rotary: Tensor, mask: Tensor | None, rows: Tensor, chunk: int = CHUNK
) -> Iterator[tuple[Tensor, Tensor]]:
    """softmax(q k^T / sqrt(D/H)) of some query rows: yields (the next of ``rows`` [c], weights [B, H, c, T] float32).

    ``x`` [B, T, D], ``rotary`` and ``mask`` are what went into ``attention``; no mask is causal. What a row may not
    see has weight 0 exactly.
    """
    heads = attention.wqkv(x).unflatten(-1, (-1, attention.head_width)).transpose(1, 2)
    q, k, _ = heads.split([attention.heads, attention.kv_heads, attention.kv_heads], dim=1)
    q = apply_rotary(q[:, :, rows], rotary[..., rows, :, :]).float() / math.sqrt(attention.head_width)
    k = apply_rotary(k, rotary).float().repeat_interleave(attention.heads // attention.kv_heads, dim=1)
    position = torch.arange(x.shape[1], device=x.device)
    for part, queries in zip(rows.split(chunk), q.split(chunk, dim=2), strict=True):
        seen = position <= part[:, None] if mask is None else mask[..., part, :]
        yield part, (queries @ k.mT).masked_fill_(~seen, -math.inf).softmax(-1)


@contextmanager
def hooked(net: TokenAR, read: Callable[[Attention, tuple[Any, ...]], None]) -> Iterator[None]:
    """Within it, ``read`` is called with each Attention and its arguments, as the layers come to run."""
    hooks = [module.register_forward_pre_hook(read) for module in net.modules() if isinstance(module, Attention)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# What looks, and what is looked at


def source_segments(layout: Layout) -> dict[str, int]:
    """Name and length of everything that a target token may see, in sequence order; the lengths add up to T.

    Copies of the references are there with identity disentanglement. The picture's last token is never looked at.
    """
    n, config = layout.image_tokens, layout.config
    lengths = {f"reference {i}": n for i in range(layout.references)}
    lengths |= {"background": n} if config.background else {}
    lengths |= {"text": config.text_tokens}
    lengths |= {"instruct tokens": config.instruct_tokens} if config.instruct_tokens else {}
    lengths |= {f"copy of reference {i}": n for i in range(layout.reference_copies)}
    return lengths | {"picture so far": n - 1}


def target_regions(layout: Layout, boxes: Sequence[Sequence[float]] | None) -> dict[str, Tensor]:
    """Name of each region -> which of the target tokens are in it, [E N] bool.

    The references' copies, where there are any, and the picture; with ``boxes``, in fractions (left, top, right,
    bottom) of the picture, one for each reference, also each subject and what of the picture is in no box. A token is
    in a box with its centre; where boxes overlap it belongs to both. A box too small for any has the nearest.
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
    """Which of ``grid`` cells have their centre between two fractions, [grid] bool; at least one."""
    centres = (torch.arange(grid) + 0.5) / grid
    inside = (centres >= low) & (centres < high)
    inside[(centres - (low + high) / 2).abs().argmin()] |= not inside.any()
    return inside


# Measuring


@dataclass
class AttentionMaps:
    """What one sample's target regions look at. Float32; ``heads`` axes H are there if they were kept.

    mass    [L, (H,) G, S]               share of a region's attention that each segment gets; sums to 1 over S
    maps    [L, (H,) G, sources, g, g]   the same for every source token; over g x g it sums to the segment's mass
    looks   [L, (H,) E, S, g, g]         share that each segment gets of what each single target token looks at

    Sources are the references and the background. A region's figures are means over its tokens' rows, and the row of
    a token is the one that predicts it, at the position before.
    """

    regions: list[str]
    segments: list[str]
    mass: Tensor
    maps: Tensor
    looks: Tensor

    def averaged(self) -> AttentionMaps:
        """The same averaged over the heads, if they were kept."""
        if self.mass.dim() == 3:
            return self
        return AttentionMaps(self.regions, self.segments, self.mass.mean(1), self.maps.mean(1), self.looks.mean(1))

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """One safetensors file of the arrays; the names of the axes and ``about`` are JSON in its metadata."""
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
    """Run one sample (B = 1) with its whole target given and see where every layer looks; averaged over the heads
    unless ``heads``. Without ``index`` no index embedding is added, as some models do without it at inference."""
    layout = net.layout_of(batch.sources)
    target = net.target_tokens(batch.sources, batch.picture)[:, :-1]
    embedded = [net.embed_prefix(batch.sources, batch.text, index=index), net.embed_target(target, layout, 0, index)]
    x = torch.cat(embedded, dim=1)
    # TokenAR.whole moves masked padding to the end to do without a mask. It computes the same; here places matter.
    mask = net.mask(layout, x.shape[1], batch.text_mask, None)
    regions, segments = target_regions(layout, boxes), source_segments(layout)
    weights = torch.stack([region / region.sum() for region in regions.values()]).to(x.device)  # [G, E N]
    first = layout.prefix - 1
    rows = torch.arange(first, x.shape[1], device=x.device)
    maps, looks = [], []

    def read(attention: Attention, arguments: tuple[Any, ...]) -> None:
        given, rotary, _, _, seen, _ = arguments
        to_sources: Tensor | float = 0.0
        shares = []
        for part, found in attention_rows(attention, given, rotary, seen, rows, chunk):
            found = found[0] if heads else found[0].mean(0, keepdim=True)  # [H or 1, c, T]
            to_sources = to_sources + weights[:, part - first] @ found[..., : layout.source_tokens]
            shares.append(torch.stack([s.sum(-1) for s in found.split(list(segments.values()), dim=-1)], dim=-1))
        assert isinstance(to_sources, Tensor)
        maps.append(to_sources.cpu())  # [H or 1, G, sources N]
        looks.append(torch.cat(shares, dim=1).cpu())  # [H or 1, E N, S]

    with hooked(net, read):
        net.hidden(x, net.tables(layout)[0][: x.shape[1]], mask=mask)
    every, grid = torch.stack(looks), (layout.config.grid, layout.config.grid)
    measured = (
        weights.cpu() @ every,
        torch.stack(maps).unflatten(-1, (len(layout.source_slots), *grid)),
        every.mT.unflatten(-1, (len(layout.target_slots), *grid)).transpose(-3, -4),
    )
    return AttentionMaps(list(regions), list(segments), *(a if heads else a.squeeze(1) for a in measured))


def identity(maps: AttentionMaps, kind: str = "reference") -> Tensor | None:
    """Of what the subjects look at in references, the share that goes to the right one, by layer: [L].

    ``kind`` "copy of reference" asks the same of the references' copies before the picture. Mean over the subjects; 1
    of R is chance. None without boxes, with one reference or without copies.
    """
    subjects = [i for i, name in enumerate(maps.regions) if name.startswith("subject ")]
    seen = [i for i, name in enumerate(maps.segments) if name.startswith(f"{kind} ")]
    if len(seen) < 2 or len(subjects) != len(seen):
        return None
    table = maps.averaged().mass[:, subjects][:, :, seen]  # [L, R, R]
    return (table.diagonal(dim1=1, dim2=2) / table.sum(-1).clamp_min(1e-12)).mean(-1)


def checked_boxes(info: Mapping[str, Any], references: int, sample_id: str) -> list[list[float]] | None:
    """A sample's ``boxes``, one for each reference; None where it has none. UserError if they are no boxes."""
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
