"""A key/value cache in which sequences with a common beginning share one copy of it.

Sampling the image tokens for one input (references, background and text) runs several sequences at once: one for each
guidance stream (with and without text, for instance) and seed. They are the input's *rows*, ordered by stream and then
by seed. Rows begin with the same positions: the source images are the same for all streams that keep the images, and
the whole prefix is the same for all seeds of a stream. A *segment* is a run of consecutive positions that are shared by
the same sets of rows. There are up to three: the source images, the rest of the prefix, and the drawn tokens. A segment
stores keys and values once for each *group* of rows that share them, and reads them from memory once for the whole
group. New positions attend to all segments.

Shape legend: B inputs, N rows in this call (those of all inputs), rows: those of one input, G groups of rows, H query
heads, K key/value heads, t new positions, T stored positions, D head width, queries: those of one group and key/value
head, n any last dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenar.model.config import ModelConfig
from tokenar.model.linear import few_rows

POSITION_CHUNK = 128
"""In single-position steps the weighted sum of values is split into products over this many positions, because one
product with one query per head uses too little of a GPU. Segments are allocated in multiples of it, and single-position
steps read multiples of it."""

QUERY_CHUNK = 256
"""The largest number of query positions in one attention call, so that less work is spent on scores that the causal
mask discards. It applies where new positions follow stored ones and no mask is given."""


def round_up(positions: int) -> int:
    """The next multiple of POSITION_CHUNK."""
    return -(-positions // POSITION_CHUNK) * POSITION_CHUNK


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q [N, H, t, D] to k and v [N, K, T, D]: [N, H, t, D].

    Query i is position T - t + i. It attends to all positions up to itself, or to those that ``mask`` allows if one is
    given.
    """
    attention = partial(F.scaled_dot_product_attention, enable_gqa=q.shape[1] != k.shape[1])
    if mask is not None or q.shape[2] == k.shape[2]:
        return attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    end, outputs = k.shape[2] - q.shape[2], []
    for queries in q.split(QUERY_CHUNK, dim=2):
        end += queries.shape[2]
        causal = torch.ones(queries.shape[2], end, dtype=torch.bool, device=q.device).tril(end - queries.shape[2])
        outputs.append(attention(queries, k[:, :, :end], v[:, :, :end], attn_mask=causal))
    return torch.cat(outputs, dim=2)


class Segment:
    """Keys and values of consecutive positions, stored once for each group of rows (G = ``groups``).

    ``keys[layer]`` and ``values[layer]`` are [G, K, T, D]. T is ``capacity``: ``positions`` rounded up to a multiple of
    POSITION_CHUNK. The first ``filled`` positions are in use. The device and the default ``dtype`` are those of
    ``like``.
    """

    def __init__(
        self, config: ModelConfig, groups: int, positions: int, like: Tensor, dtype: torch.dtype | None = None
    ):
        self.groups, self.filled, self.capacity = groups, 0, round_up(positions)
        shape = (groups, config.key_value_heads, self.capacity, config.head_width)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype or like.dtype, device=like.device) for _ in range(config.layers)]
            for _ in range(2)
        )


class KeyValueCache:
    """The segments of a batch, in the order of their positions. New positions are stored in the last segment.

    The cache has two modes. While ``offset`` is None, any number of positions is added after the filled ones. If
    ``offset`` (a device tensor of shape [1], int64) is set, every row adds one position, which is stored at ``offset``
    in the last segment. Only the first ``read_length`` positions of that segment are read. All other segments are then
    read to their full capacity, so ``bias`` must mask what is not filled. It has the shape [B, 1, rows, sum of all
    capacities] and is added to the scores: -inf at positions that must not be seen, else 0. Steps with the same
    ``read_length`` do the same operations on the same memory, so that a GPU can replay them as a CUDA graph.
    """

    def __init__(self, segments: list[Segment]):
        self.segments = segments
        self.offset: Tensor | None = None
        self.bias: Tensor | None = None
        self.read_length = 0

    @property
    def filled(self) -> int:
        """Positions in use, in all segments together."""
        return sum(segment.filled for segment in self.segments)

    def advance(self, positions: int) -> None:
        """Count ``positions`` new positions as filled.

        With an ``offset`` it does nothing: the caller advances ``offset``.
        """
        if self.offset is None:
            self.segments[-1].filled += positions

    def layer(self, number: int) -> LayerCache:
        """What the layer ``number`` reads and writes."""
        keys, values = ([s.keys[number] for s in self.segments], [s.values[number] for s in self.segments])
        filled = [segment.filled for segment in self.segments]
        return LayerCache(keys, values, filled, self.offset, self.bias, self.read_length)


@dataclass
class LayerCache:
    """One layer's part of a KeyValueCache, as it is now: ``keys`` and ``values`` of each segment [G, K, T, D], the
    segments' ``filled`` positions, and the cache's ``offset``, ``bias`` and ``read_length``.

    Layers' parts differ in nothing but their tensors, so that a block compiled for one serves all.
    """

    keys: list[Tensor]
    values: list[Tensor]
    filled: list[int]
    offset: Tensor | None
    bias: Tensor | None
    read_length: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store the keys and values of new positions and attend to all positions, old and new.

        q [N, H, t, D], k and v [N, K, t, D] -> [N, H, t, D]. ``mask`` covers all positions and is as for
        scaled_dot_product_attention; None means causal. With an ``offset`` the shapes are [B, H, rows, D] and
        [B, K, rows, D], one new position for each of an input's rows, and ``bias`` is used instead of ``mask``.
        """
        if self.offset is not None:
            return self._attend_single(q, k, v)
        begin, end = self.filled[-1], self.filled[-1] + k.shape[2]
        self.keys[-1][:, :, begin:end] = _rounded(k, self.keys[-1])
        self.values[-1][:, :, begin:end] = _rounded(v, self.values[-1])
        ends = [*self.filled[:-1], end]
        k = _for_each_row([keys[:, :, :e] for keys, e in zip(self.keys, ends, strict=True)], len(q))
        v = _for_each_row([values[:, :, :e] for values, e in zip(self.values, ends, strict=True)], len(q))
        return causal_attention(q, k.to(q.dtype), v.to(q.dtype), mask)

    def _attend_single(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one new position a row, [B, H, rows, D]: first the scores of each segment, then one softmax over
        all of them, then the weighted sum of each segment's values. These sums are added.
        """
        assert self.offset is not None
        assert self.bias is not None
        _store(self.keys[-1], self.offset, _rows_first(k))
        _store(self.values[-1], self.offset, _rows_first(v))
        q = q * q.shape[-1] ** -0.5
        lengths = [keys.shape[2] for keys in self.keys[:-1]] + [self.read_length]
        scores = []
        for stored, length in zip(self.keys, lengths, strict=True):
            keys = stored[:, :, :length].to(q.dtype)
            queries = _by_group(q, len(keys), keys.shape[1])
            scores.append(_by_input(few_rows(queries, keys), *q.shape[:3]))
        biased = torch.cat(scores, dim=-1).float() + self.bias[..., : sum(lengths)]
        weights = (biased - biased.amax(-1, keepdim=True)).exp()  # normalised at the end, by the division
        outputs = []
        for stored, part in zip(self.values, weights.to(q.dtype).split(lengths, dim=-1), strict=True):
            values = stored[:, :, : part.shape[-1]].to(q.dtype).unflatten(2, (-1, POSITION_CHUNK))
            grouped = _by_group(part, len(values), values.shape[1])
            chunks = grouped.unflatten(3, (-1, POSITION_CHUNK)).transpose(2, 3)
            outputs.append(_by_input((chunks @ values).sum(2), *q.shape[:3]))
        return sum(outputs[1:], outputs[0]) / weights.sum(-1, keepdim=True).to(q.dtype)


def _for_each_row(segments: Sequence[Tensor], rows: int) -> Tensor:
    """Keys or values [G, K, T, D] of each segment -> those of all positions for each of ``rows`` rows, [N, K, T, D]."""
    repeated = [part.repeat_interleave(rows // len(part), 0) if rows > len(part) else part for part in segments]
    return repeated[0] if len(repeated) == 1 else torch.cat(repeated, dim=2)


def _store(stored: Tensor, offset: Tensor, new: Tensor) -> None:
    """Write ``new`` [G, K, 1, D] at position ``offset`` [1] of ``stored`` [G, K, T, D]."""
    new = _rounded(new, stored)
    if stored.element_size() == 1:  # torch has no index_copy_ for float8, which is therefore viewed as uint8
        stored, new = stored.view(torch.uint8), new.view(torch.uint8)
    stored.index_copy_(2, offset, new)


def _rounded(new: Tensor, stored: Tensor) -> Tensor:
    """``new`` in the type of ``stored``. Numbers beyond the range of float8 become its largest: torch's conversion
    would make them NaN, and one such key spoils all tokens after it."""
    if stored.element_size() == 1:
        largest = torch.finfo(stored.dtype).max
        new = new.clamp(-largest, largest)
    return new.to(stored.dtype)


def _rows_first(x: Tensor) -> Tensor:
    """[B, K, rows, D] -> [N, K, 1, D], with N = B * rows."""
    return x.transpose(1, 2).flatten(0, 1)[:, :, None]


def _by_group(x: Tensor, groups: int, key_heads: int) -> Tensor:
    """Lay all queries that use the same keys next to each other: [B, H, rows, n] -> [G, K, queries, n].

    n is any last dimension. For each group and key/value head there are (H/K) x (rows of the group) queries.
    """
    batch, heads, _, n = x.shape
    if groups == batch and key_heads == heads:
        return x
    x = x.reshape(batch, key_heads, heads // key_heads, groups // batch, -1, n)
    return x.permute(0, 3, 1, 2, 4, 5).reshape(groups, key_heads, -1, n)


def _by_input(x: Tensor, batch: int, heads: int, rows: int) -> Tensor:
    """The inverse of ``_by_group``: [G, K, queries, n] -> [B, H, rows, n]."""
    groups, key_heads, _, n = x.shape
    if groups == batch and key_heads == heads:
        return x
    x = x.reshape(batch, groups // batch, key_heads, heads // key_heads, -1, n)
    return x.permute(0, 2, 3, 1, 4, 5).reshape(batch, heads, rows, n)
