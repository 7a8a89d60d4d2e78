"""The published program's way of sampling and training, on this project's weights, for the benchmarks to compare with.

Its products, cache and batch of two are the published ones (docs/differences.md says what they do otherwise). On one
thread of a CPU, at the size of ``sample.py``, a picture took the published program 27.7 and 29.9 s and this one 28.8
and 29.0 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from checks.scale import now
from torch import Tensor
from torch.nn import functional as F

from tokenar.model.positions import apply_rotary
from tokenar.model.transformer import TokenAR
from tokenar.sample.logits import filter_logits, guide

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of a layer's number, q, k and v [B, H, t, D]: [B, H, t, D]."""


def hidden(net: TokenAR, x: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
    """Hidden states [B, t, D] of the positions x [B, t, D], with torch's own matrix products."""
    for number, layer in enumerate(net.layers):
        attention, feed_forward = layer.attention, layer.feed_forward
        heads = F.linear(layer.attention_norm(x), attention.wqkv.weight)
        q, k, v = heads.unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        mixed = F.linear(attend(number, q, k, v).transpose(1, 2).flatten(2), attention.wo.weight)
        x = x + attention.dropout(mixed)
        h = layer.ffn_norm(x)
        gated = F.silu(F.linear(h, feed_forward.w1.weight)) * F.linear(h, feed_forward.w3.weight)
        x = x + feed_forward.dropout(F.linear(gated, feed_forward.w2.weight))
    return net.norm(x)


@dataclass
class PlainCache:
    """Keys and values [2, H, T, D] of a layer, for all T positions from the start."""

    keys: Tensor
    values: Tensor

    def update(self, places: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[:, :, places] = keys
        self.values[:, :, places] = values
        return self.keys.repeat_interleave(1, dim=1), self.values.repeat_interleave(1, dim=1)


class Plain:
    """A sampler like the published one: it draws the reference copies too, doubles the batch for guidance, and copies
    the whole cache in every layer and step, from the first step on."""

    def __init__(self, net: TokenAR, references: int, sampling: dict[str, float], compiled: bool = False):
        self.net, self.layout, self.sampling = net, net.layout(references), sampling
        config, length, like = net.config, self.layout.total, net.norm.weight
        shape = (2, config.heads, length, config.head_width)
        self.caches = [PlainCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in net.layers]
        self.mask = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
        self.rotary = net.tables(self.layout)[0]
        self.forward = torch.compile(self._forward, dynamic=False) if compiled else self._forward

    def _forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Logits [2, t, V] of the t new positions ``places``, whose inputs are ``x`` [2, t, D]."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = self.caches[layer].update(places, k, v)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[places])

        return F.linear(hidden(self.net, x, self.rotary[places], attend), self.net.head).float()

    @torch.no_grad()
    def draw(self, sources: Tensor, text: Tensor, limit: int | None = None) -> list[float]:
        """Draw a picture, or its first ``limit`` tokens.

        Returns clock readings in seconds: at the start, after the first token, at the end.
        """
        net, layout, device = self.net, self.layout, sources.device
        total = layout.total if limit is None else min(layout.total, layout.prefix + limit)
        clock = [now(device)]
        dropped = torch.tensor([False, True], device=device)
        x = net.embed_prefix(torch.cat([sources] * 2), torch.cat([text] * 2), None, dropped, None, False)
        logits = self.forward(x, torch.arange(layout.prefix, device=device))[:, -1]
        tokens = []
        for place in range(layout.prefix, total):
            guided = guide(logits[:1], logits[1:], self.sampling["guidance"])
            kept = filter_logits(guided, self.sampling["temperature"], int(self.sampling["top_k"]), 1.0)
            tokens.append(torch.multinomial(kept.softmax(-1), 1))
            if len(clock) == 1:
                clock.append(now(device))
            if place < total - 1:
                x = net.tok_embeddings(torch.cat([tokens[-1]] * 2))
                logits = self.forward(x, torch.tensor([place], device=device))[:, -1]
        torch.cat(tokens, dim=1)[:, -layout.image_tokens :]
        return [*clock, now(device)]
