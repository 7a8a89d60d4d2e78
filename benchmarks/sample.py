"""Seconds to draw one picture: the sampler's modes, compared to an eager loop that works like the published sampler.

The plain loop also draws the reference copies, doubles the batch for guidance, copies keys and values in every layer
and step, and reads the whole cache from the first step on. All sides use the same weights and take turns on the same
machine. Speed does not depend on the weights' values, so they are random, with a head of zeros: the greedy choice is
then always token 0, so that in verified mode a draft of zeros is always right and a draft of ones always wrong.
The last line is one JSON object; ``ratio`` is plain seconds over forced seconds.

python benchmarks/sample.py                  # 25 M parameters, 256 tokens an image, four blocks, on a CPU in float32
python benchmarks/sample.py --size xl        # GPT-XL at 512 pixels on a GPU, in bfloat16
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from checks.scale import now
from torch import Tensor
from torch.nn import functional as F

from tokenar.config import SampleConfig
from tokenar.encoders.config import VqConfig, vq16
from tokenar.encoders.vq import VqNetwork, VqTokenizer
from tokenar.model.config import ModelConfig, released
from tokenar.model.positions import apply_rotary
from tokenar.model.transformer import TokenAR
from tokenar.sample.decoder import Decoder
from tokenar.sample.logits import filter_logits, guide

GOAL = {"forced_s": 2.0, "free_s": 9.4}
"""Target seconds for GPT-XL on one H100 at guidance 3."""
SAMPLING = {"guidance": 3.0, "temperature": 1.0, "top_k": 1000, "compile": True}


def models(size: str) -> tuple[ModelConfig, VqConfig]:
    """(model, VQ tokenizer) settings: the released ones for "xl", otherwise a smaller model and a smaller codebook."""
    if size == "xl":
        return released(), vq16()
    small = {"layers": 6, "heads": 8, "width": 512, "vocabulary": 2048, "grid": 16}
    vq = VqConfig(ch_mult=(1, 1, 2, 2, 4), base_channels=64, codebook_size=2048)
    return ModelConfig.model_validate(released().model_dump() | small | {"distill": None}), vq


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
    """A sampler like the published one (docs/differences.md): eager, draws every target token, batch of two."""

    def __init__(self, net: TokenAR, references: int):
        self.net, self.layout = net, net.layout(references)
        config, length, like = net.config, self.layout.total, net.norm.weight
        shape = (2, config.heads, length, config.head_width)
        self.caches = [PlainCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in net.layers]
        self.mask = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
        self.rotary = net.tables(self.layout)[0]

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Logits [2, t, V] of the t new positions ``places``, whose inputs are ``x`` [2, t, D]."""
        for layer, cache in zip(self.net.layers, self.caches, strict=True):
            attention, feed_forward = layer.attention, layer.feed_forward
            heads = F.linear(layer.attention_norm(x), attention.wqkv.weight)
            q, k, v = heads.unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = apply_rotary(q, self.rotary[places]), apply_rotary(k, self.rotary[places])
            k, v = cache.update(places, k, v)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[places])
            x = x + F.linear(mixed.transpose(1, 2).flatten(2), attention.wo.weight)
            h = layer.ffn_norm(x)
            gated = F.silu(F.linear(h, feed_forward.w1.weight)) * F.linear(h, feed_forward.w3.weight)
            x = x + F.linear(gated, feed_forward.w2.weight)
        return F.linear(self.net.norm(x), self.net.head).float()

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
            guided = guide(logits[:1], logits[1:], SAMPLING["guidance"])
            kept = filter_logits(guided, SAMPLING["temperature"], int(SAMPLING["top_k"]), 1.0)
            tokens.append(torch.multinomial(kept.softmax(-1), 1))
            if len(clock) == 1:
                clock.append(now(device))
            if place < total - 1:
                x = net.tok_embeddings(torch.cat([tokens[-1]] * 2))
                logits = self.forward(x, torch.tensor([place], device=device))[:, -1]
        torch.cat(tokens, dim=1)[:, -layout.image_tokens :]
        return [*clock, now(device)]


def ours(net: TokenAR, sources: Tensor, text: Tensor, **settings: object) -> Callable[[], list[float]]:
    """Make a decoder. Each call of the returned function draws a picture and returns clock readings as Plain.draw."""
    config = SampleConfig.model_validate(SAMPLING | settings)
    decoder, device = Decoder(net, 1, net.config.max_references, config), sources.device

    def run() -> list[float]:
        clock = [now(device)]
        for number, _ in enumerate(decoder.decode(sources, text, [0])):
            if number == 0:
                clock.append(now(device))
        return [*clock, now(device)]

    run.decoder = decoder  # type: ignore[attr-defined]
    return run


@dataclass
class Side:
    """Seconds of a whole picture and of its prefill, one value for each round."""

    whole: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)

    def add(self, clock: list[float]) -> None:
        begin, first, end = clock
        self.whole.append(end - begin)
        self.prefill.append(first - begin)


def step_bytes(decoder: Decoder) -> int:
    """Bytes that the decoding steps of a picture read and write, without the prefill."""
    net, count = decoder.net, decoder.count
    total = 0
    stored = sum(segment.groups * segment.capacity for segment in decoder.segments[:-1])
    narrow = net.norm.weight.element_size() // decoder.segments[0].keys[0].element_size()  # 2 for a float8 cache
    weights = net.weight_bytes()
    for number in range(1, count):
        cached = stored + decoder.drawn_segment.groups * (decoder.read_length(number) + 1)
        total += weights + net.kv_bytes(cached) // narrow
    return total


def plain_bytes(net: TokenAR, references: int) -> int:
    """The same for the plain loop, which reads, copies and reads again the whole cache in every step."""
    layout = net.layout(references)
    return (layout.target_tokens - 1) * (net.weight_bytes() + net.kv_bytes(2 * 3 * layout.total))


def bandwidth(device: torch.device) -> float:
    """Bytes a second at which this machine reads memory, the best of five measurements."""
    block = torch.ones(1 << (30 if device.type == "cuda" else 27), device=device)
    best = float("inf")
    for _ in range(5):
        begin = now(device)
        block.sum()
        best = min(best, now(device) - begin)
    return block.numel() * block.element_size() / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["cpu", "xl"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, vq = models(given.size)
    torch.manual_seed(0)
    net = TokenAR(config).eval().to(device, torch.bfloat16 if given.size == "xl" else torch.float32)
    right = torch.zeros(1, config.source_blocks, config.image_tokens, dtype=torch.int64, device=device)
    text = torch.randn(1, config.text_tokens, config.text_width, device=device).to(net.norm.weight.dtype)
    plain = Plain(net, config.max_references)
    runs = {
        "plain": lambda: plain.draw(right, text),
        "forced": ours(net, right, text),
        "verified_all_right": ours(net, right, text, copies="verified", temperature=0.0),
        "verified_all_wrong": ours(net, right + 1, text, copies="verified", temperature=0.0),
        "free": ours(net, right, text, copies="drawn"),
    }
    for run in [*runs.values()][1:] * 2:  # the first round compiles the step; on a GPU the second captures its graph
        run()
    sides = {name: Side() for name in runs}
    for _ in range(given.rounds):
        for name, run in runs.items():
            clock = run()
            sides[name].add(clock)
            print(f"{name}: {clock[2] - clock[0]:.2f} s, of which prefill {clock[1] - clock[0]:.2f} s", flush=True)
    tokenizer = VqTokenizer(VqNetwork(vq).eval(), config.grid * vq.reduction, device)
    codes = torch.zeros(1, config.image_tokens, dtype=torch.int64)
    vq_times = []
    for _ in range(3):
        begin = now(device)
        tokenizer.decode(codes)
        vq_times.append(now(device) - begin)
    middle = {name: statistics.median(side.whole) for name, side in sides.items()}
    speed, tokens = bandwidth(device), config.image_tokens
    moved = {"plain": plain_bytes(net, config.max_references)} | {
        name: step_bytes(runs[name].decoder)
        for name in ("forced", "free")  # type: ignore[attr-defined]
    }
    decoding = {name: middle[name] - statistics.median(sides[name].prefill) for name in moved}
    print(json.dumps({
        "benchmark": "sample", "size": given.size, "parameters": sum(p.numel() for p in net.parameters()),
        "tokens": tokens, "blocks": config.source_blocks, "guidance": SAMPLING["guidance"],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        **{f"{name}_s": round(value, 3) for name, value in middle.items()},
        **{f"{name}_prefill_s": round(statistics.median(side.prefill), 3) for name, side in sides.items()},
        "vq_decode_s": round(statistics.median(vq_times), 3),
        **{f"{name}_tokens_per_s": round(tokens / value, 1) for name, value in middle.items()},
        "bandwidth_gb_per_s": round(speed / 1e9, 2),
        **{f"{name}_gb_moved": round(value / 1e9, 2) for name, value in moved.items()},
        **{f"{name}_share_of_bandwidth": round(moved[name] / decoding[name] / speed, 3) for name in moved},
        "ratio": round(middle["plain"] / middle["forced"], 2),
        "ratio_free": round(middle["plain"] / middle["free"], 2),
        **({"goal": GOAL} if given.size == "xl" else {}),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
