"""Keys and values of what has been read, kept once for all rows that share it.

Shape legend: B inputs, N rows of the batch, G groups of rows, H heads, K heads of keys and values, t new and T stored
positions, D head width.

A row is one sequence that grows: an input has a row for each guidance stream and seed, streams first. What an input's
rows have in common (the pictures come first, and guidance leaves them as they are) is one group, and so is what the
seeds of a stream have in common (the whole prefix). A segment holds the positions that are shared on one such level.
New positions attend to all segments, and what is shared is read from memory once for its whole group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenar.model.config import ModelConfig
from tokenar.model.linear import few_rows

SPLIT = 128
"""Positions whose values one product sums up for a new position: one query a head is too little work for a GPU unless
it is split. Room is made, and read, in multiples of it."""

PIECE = 256
"""New positions that attend at once to what is before them: fewer scores that the mask takes away again."""


def rounded(positions: int) -> int:
    """The next multiple of SPLIT."""
    return -(-positions // SPLIT) * SPLIT


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q [N, H, t, D] to k and v [N, K, T, D], causal from the end where there is no mask: [N, H, t, D]."""
    attention = partial(F.scaled_dot_product_attention, enable_gqa=q.shape[1] != k.shape[1])
    if mask is not None or q.shape[2] == k.shape[2]:
        return attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    end, mixed = k.shape[2] - q.shape[2], []
    for part in q.split(PIECE, dim=2):
        end += part.shape[2]
        mask = torch.ones(part.shape[2], end, dtype=torch.bool, device=q.device).tril(end - part.shape[2])
        mixed.append(attention(part, k[:, :, :end], v[:, :, :end], attn_mask=mask))
    return torch.cat(mixed, dim=2)


class Segment:
    """Neighbouring positions for ``groups`` groups of rows, of which the first ``filled`` are there.

    For every layer keys and values [G, K, T, D] in ``dtype`` (or that of ``like``), with T, the ``room``, rounded up to
    SPLIT.
    """

    def __init__(
        self, config: ModelConfig, groups: int, positions: int, like: Tensor, dtype: torch.dtype | None = None
    ):
        self.groups, self.filled, self.room = groups, 0, rounded(positions)
        shape = (groups, config.key_value_heads, self.room, config.head_width)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype or like.dtype, device=like.device) for _ in range(config.layers)]
            for _ in range(2)
        )


class KeyValueCache:
    """The segments of a batch in the order of their positions; new positions go into the last.

    With ``place`` [1] int64 on the device, one new position of every row goes there in the last segment, of which only
    the first ``reach`` positions are read. ``bias`` [B, 1, rows of an input, all rooms] is added to its scores, -inf
    for what is not to be seen. A step then does the same work on the same memory as the one before, which lets a GPU
    replay it.
    """

    def __init__(self, segments: list[Segment]):
        self.segments = segments
        self.place: Tensor | None = None
        self.bias: Tensor | None = None
        self.reach = 0

    @property
    def filled(self) -> int:
        """Positions that are there, in all segments."""
        return sum(segment.filled for segment in self.segments)

    def advance(self, positions: int) -> None:
        """Count new positions as there; those at ``place`` are their owner's to count."""
        if self.place is None:
            self.segments[-1].filled += positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Keep the keys and values of new positions and attend to everything.

        q [N, H, t, D], k and v [N, K, t, D]; ``mask`` over all positions as for scaled_dot_product_attention, None is
        causal. With ``place`` the new positions are those of an input's rows: [B, H, rows, D] and [B, K, rows, D].
        """
        if self.place is not None:
            return self._attend_single(layer, q, k, v)
        own = self.segments[-1]
        end = own.filled + k.shape[2]
        own.keys[layer][:, :, own.filled : end] = k
        own.values[layer][:, :, own.filled : end] = v
        ends = [segment.filled for segment in self.segments[:-1]] + [end]
        k = _joined([s.keys[layer][:, :, :e] for s, e in zip(self.segments, ends, strict=True)], len(q))
        v = _joined([s.values[layer][:, :, :e] for s, e in zip(self.segments, ends, strict=True)], len(q))
        return attend(q, k.to(q.dtype), v.to(q.dtype), mask)

    def _attend_single(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Products with each segment's keys and values, and one softmax over all of them."""
        assert self.place is not None
        assert self.bias is not None
        _put(self.segments[-1].keys[layer], self.place, _rows_first(k))
        _put(self.segments[-1].values[layer], self.place, _rows_first(v))
        q = q * q.shape[-1] ** -0.5
        lengths = [segment.room for segment in self.segments[:-1]] + [self.reach]
        scores = []
        for segment, length in zip(self.segments, lengths, strict=True):
            keys = segment.keys[layer][:, :, :length].to(q.dtype)
            scores.append(_by_input(few_rows(_by_group(q, segment.groups, keys.shape[1]), keys), *q.shape[:3]))
        biased = torch.cat(scores, dim=-1).float() + self.bias[..., : sum(lengths)]
        weights = (biased - biased.amax(-1, keepdim=True)).exp()
        mixed = []
        for segment, share in zip(self.segments, weights.to(q.dtype).split(lengths, dim=-1), strict=True):
            values = segment.values[layer][:, :, : share.shape[-1]].to(q.dtype).unflatten(2, (-1, SPLIT))
            pieces = _by_group(share, segment.groups, values.shape[1]).unflatten(3, (-1, SPLIT)).transpose(2, 3)
            mixed.append(_by_input((pieces @ values).sum(2), *q.shape[:3]))
        return sum(mixed[1:], mixed[0]) / weights.sum(-1, keepdim=True).to(q.dtype)


def _joined(parts: Sequence[Tensor], rows: int) -> Tensor:
    """Stored [G, K, T, D] of each segment -> that of all positions for every row, [N, K, T, D]."""
    each = [part.repeat_interleave(rows // len(part), 0) if rows > len(part) else part for part in parts]
    return each[0] if len(each) == 1 else torch.cat(each, dim=2)


def _put(stored: Tensor, place: Tensor, new: Tensor) -> None:
    """Write new [G, K, 1, D] at ``place`` of stored [G, K, T, D]."""
    new = new.to(stored.dtype)
    if stored.element_size() == 1:  # float8 has no such operation of its own
        stored, new = stored.view(torch.uint8), new.view(torch.uint8)
    stored.index_copy_(2, place, new)


def _rows_first(x: Tensor) -> Tensor:
    """[B, K, rows, D] -> [N, K, 1, D]."""
    return x.transpose(1, 2).flatten(0, 1)[:, :, None]


def _by_group(x: Tensor, groups: int, key_heads: int) -> Tensor:
    """[B, H, rows, n] -> [G, K, queries, n]: what meets the same keys, side by side; queries are H/K heads and rows."""
    batch, heads, _, n = x.shape
    if groups == batch and key_heads == heads:
        return x
    x = x.reshape(batch, key_heads, heads // key_heads, groups // batch, -1, n)
    return x.permute(0, 3, 1, 2, 4, 5).reshape(groups, key_heads, -1, n)


def _by_input(x: Tensor, batch: int, heads: int, rows: int) -> Tensor:
    """[G, K, queries, n] -> [B, H, rows, n]."""
    groups, key_heads, _, n = x.shape
    if groups == batch and key_heads == heads:
        return x
    x = x.reshape(batch, groups // batch, key_heads, heads // key_heads, -1, n)
    return x.permute(0, 2, 3, 1, 4, 5).reshape(batch, heads, rows, n)
