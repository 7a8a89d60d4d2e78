"""Attention of a decoding step over a prefix that several sequences share: the project's own against two libraries'.

The sizes are those of forced drawing with guidance: the source images are stored once for both streams of an input,
and every stream has a segment of its own. Several layers are read one after another, because those of one would stay
in the GPU's cache, and on a GPU all of it is one CUDA graph.

Shape legend: B inputs, H heads, rows: the streams of an input, D head width, T stored positions.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from checks.scale import REFERENCES, Scale, relative, require, seconds
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from tokenar.model.cache import KeyValueCache, Segment
from tokenar.model.positions import make_layout

STREAMS = 2
BOUND = {torch.bfloat16: 2e-2, torch.float32: 2e-5}
"""Largest relative difference from attention in float32 over keys and values side by side."""
PAGE = 16
"""Positions of a page of FlashInfer's cache."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v), each [B, H, rows, D], to [B, H, rows, D]; k and v are those of the new position."""


class Filled:
    """A cache with random keys and values in ``layers`` layers, in the middle of a picture."""

    def __init__(self, scale: Scale, batch: int, layers: int):
        config = scale.model(layers=layers)
        layout = make_layout(config, REFERENCES)
        like = torch.zeros(1, device=scale.device, dtype=scale.dtype)
        own = layout.prefix - layout.source_tokens + layout.target_tokens
        self.source = Segment(config, batch, layout.source_tokens, like)
        self.own = Segment(config, batch * STREAMS, own, like)
        self.cache = KeyValueCache([self.source, self.own])
        self.layers = layers
        self.shape = (batch, config.heads, STREAMS, config.head_width)
        self.seen = own - layout.image_tokens // 2  # positions of the own segment that are seen, the new one too
        for stored in (*self.source.keys, *self.source.values, *self.own.keys, *self.own.values):
            stored.normal_()
        self.cache.offset = torch.full((1,), self.seen - 1, device=scale.device)
        self.cache.read_length = self.own.capacity
        self.cache.bias = torch.zeros(batch, 1, STREAMS, self.source.capacity + self.own.capacity, device=scale.device)
        self.cache.bias[..., layout.source_tokens : self.source.capacity] = -torch.inf
        self.cache.bias[..., self.source.capacity + self.seen :] = -torch.inf
        self.positions = layout.source_tokens
        self.new = [torch.randn(self.shape, device=scale.device, dtype=scale.dtype) for _ in range(3)]

    def exact(self) -> Tensor:
        """The last layer's attention in float32, [B, H, rows, D]."""
        q, k, v = (tensor.float() for tensor in self.new)
        batch, heads, rows, width = self.shape
        sides = []
        for new, source, own in ((k, self.source.keys[-1], self.own.keys[-1]),
                                 (v, self.source.values[-1], self.own.values[-1])):  # fmt: skip
            before = source[:, :, : self.positions].float().repeat_interleave(rows, 0)
            after = own[:, :, : self.seen - 1].float()
            sides.append(torch.cat([before, after, new.transpose(1, 2).flatten(0, 1)[:, :, None]], 2))
        single = q.transpose(1, 2).flatten(0, 1)[:, :, None]
        return F.scaled_dot_product_attention(single, *sides).view(batch, rows, heads, width).transpose(1, 2)


def by_hand(filled: Filled) -> Attend:
    """The project's own."""
    return lambda layer, q, k, v: filled.cache.layer(layer).attend(q, k, v, None)


def by_flex(filled: Filled) -> Attend:
    """FlexAttention over the shared positions once for an input, over the own ones once for a row, and merged."""
    bias, begin = filled.cache.bias, filled.source.capacity
    assert bias is not None

    def shared_mask(score: Tensor, b: Tensor, h: Tensor, row: Tensor, position: Tensor) -> Tensor:
        return score + bias[b, 0, row, position]

    def own_mask(score: Tensor, b: Tensor, h: Tensor, row: Tensor, position: Tensor) -> Tensor:
        return score + bias[b // STREAMS, 0, b % STREAMS, begin + position]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, rows, width = q.shape
        place = filled.cache.offset
        for stored, new in ((filled.own.keys[layer], k), (filled.own.values[layer], v)):
            stored.index_copy_(2, place, new.transpose(1, 2).flatten(0, 1)[:, :, None])
        parts = [
            (q, filled.source, shared_mask),
            (q.transpose(1, 2).reshape(-1, heads, 1, width), filled.own, own_mask),
        ]
        outputs, sums = [], []
        for queries, segment, mask in parts:
            out, aux = flex_attention(
                queries, segment.keys[layer], segment.values[layer], score_mod=mask, return_aux=AuxRequest(lse=True)
            )
            outputs.append(out)
            sums.append(aux.lse)
        outputs[1] = outputs[1].view(batch, rows, heads, width).transpose(1, 2)
        sums[1] = sums[1].view(batch, rows, heads).transpose(1, 2)
        share = torch.sigmoid(sums[0] - sums[1])[..., None]  # the shared positions' part of the sum of weights
        return (outputs[0].float() * share + outputs[1].float() * (1 - share)).to(q.dtype)

    return attend


def by_cascade(filled: Filled) -> Attend:
    """FlashInfer's cascade of two levels over pages: the shared positions of every input, then each row's own."""
    from flashinfer import MultiLevelCascadeAttentionWrapper

    batch, heads, rows, width = filled.shape
    device, dtype = filled.new[0].device, filled.new[0].dtype

    def counts(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    pages = [filled.source.capacity // PAGE, filled.own.capacity // PAGE]
    lengths, groups = (filled.positions, filled.seen), (batch, batch * rows)
    starts, queries, tables, last = [], [], [], []
    begin = 0
    for per_group, length, count in zip(pages, lengths, groups, strict=True):
        used = -(-length // PAGE)
        starts.append(counts([used * i for i in range(count + 1)]))
        tables.append(torch.cat([begin + per_group * i + torch.arange(used) for i in range(count)]).int().to(device))
        last.append(counts([length - PAGE * (used - 1)] * count))
        queries.append(counts([batch * rows // count * i for i in range(count + 1)]))
        begin += per_group * count

    def paged(source: Tensor, own: Tensor) -> Tensor:  # [pages, H, PAGE, D]
        return torch.cat([
            side.unflatten(2, (-1, PAGE)).transpose(1, 2).flatten(0, 1) for side in (source, own)
        ]).contiguous()  # fmt: skip

    stored = [
        (paged(filled.source.keys[i], filled.own.keys[i]), paged(filled.source.values[i], filled.own.values[i]))
        for i in range(filled.layers)
    ]
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    wrapper = MultiLevelCascadeAttentionWrapper(2, workspace, "HND")
    wrapper.plan(queries, starts, tables, last, heads, heads, width, PAGE, q_data_type=dtype)
    own_pages = batch * pages[0] + pages[1] * torch.arange(batch * rows, device=device) + (filled.seen - 1) // PAGE
    place = (filled.seen - 1) % PAGE

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for side, new in zip(stored[layer], (k, v), strict=True):
            side[own_pages, :, place] = new.transpose(1, 2).flatten(0, 1)
        out = wrapper.run(q.transpose(1, 2).flatten(0, 1).contiguous(), stored[layer])  # [B rows, H, D]
        return out.view(batch, rows, heads, width).transpose(1, 2)

    return attend


def recorded(work: Callable[[], Tensor], scale: Scale) -> Callable[[], object]:
    """The work as a CUDA graph, after two turns that compile it and choose kernels; on a CPU itself."""
    if not scale.on_gpu:
        return work
    stream = torch.cuda.Stream(scale.device)
    torch.cuda.synchronize(scale.device)  # what fills the cache is on another stream
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.synchronize(scale.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph.replay


@torch.no_grad()
def measured(attend: Attend, filled: Filled, scale: Scale, compiled: bool) -> dict[str, float]:
    """Microseconds a layer, and the relative difference from float32. Compiled is all of it, as the decoder's step."""
    output = torch.zeros(filled.shape, device=scale.device, dtype=scale.dtype)

    def work() -> Tensor:
        for layer in range(filled.layers):
            output.copy_(attend(layer, *filled.new))
        return output

    run = recorded(torch.compile(work, fullgraph=True) if compiled else work, scale)
    taken = statistics.median(seconds(run, scale.device, turns=20 if scale.full else 2))
    return {"us": round(1e6 * taken / filled.layers, 2), "difference": relative(output, filled.exact())}


def decode_attention(scale: Scale) -> dict[str, Any]:
    """Microseconds a layer of each way at batch 1 and 16, and which is the fastest; all must agree with float32."""
    ways: dict[str, tuple[Callable[[Filled], Attend], bool]] = {"by_hand": (by_hand, False)}
    if scale.on_gpu:
        ways["by_hand_compiled"] = (by_hand, True)
    ways |= {"flex": (by_flex, scale.on_gpu), "cascade": (by_cascade, False)}
    figures: dict[str, Any] = {}
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
    for batch in (1, 16) if scale.full else (1, 2):
        filled = Filled(scale, batch, layers=6 if scale.full else 2)
        row: dict[str, Any] = {}
        for name, (make, compiled) in ways.items():
            torch._dynamo.reset()
            try:
                row[name] = measured(make(filled), filled, scale, compiled)
            except (ImportError, RuntimeError, TypeError, ValueError) as error:
                row[name] = {"not_here": (str(error).splitlines() or [type(error).__name__])[0][:200]}
        timed = {name: found for name, found in row.items() if "us" in found}
        far = {name: found["difference"] for name, found in timed.items() if found["difference"] > BOUND[scale.dtype]}
        require(not far, f"attention differs from float32 at batch {batch} by {far}")
        require("by_hand" in timed, f"batch {batch}: {row['by_hand']}")
        figures[str(batch)] = {**row, "fastest": min(timed, key=lambda name: timed[name]["us"])}
    return figures
