"""Seconds to draw one picture: the sampler's modes, compared to the published program's way (published.py).

All sides use the same weights and take turns on the same machine, first as they are by default, then compiled. Speed
does not depend on the weights' values, so they are random, with a head of zeros: the greedy choice is then always token
0, so that in verified mode a draft of zeros is always right and a draft of ones always wrong. The last line is one JSON
object with four ratios of seconds, published over ours: ``equal_work`` draws the reference copies on both sides, and
``left_out`` lets ours take them as given, which is its default. First turns count by default, as a user waits for
them; compiled sides have one turn before, whose seconds more are ``compile_s``.

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
from checks.scale import now, seconds
from published import Plain
from torch import Tensor

from tokenar.config import SampleConfig
from tokenar.encoders.config import VqConfig, vq16
from tokenar.encoders.vq import VqNetwork, VqTokenizer
from tokenar.model.config import ModelConfig, released
from tokenar.model.transformer import TokenAR
from tokenar.sample.decoder import Decoder

GOAL = {"forced_s": 2.0, "free_s": 9.4}
"""Target seconds for GPT-XL on one H100 at guidance 3."""
SAMPLING = {"guidance": 3.0, "temperature": 1.0, "top_k": 1000}


def models(size: str) -> tuple[ModelConfig, VqConfig]:
    """(model, VQ tokenizer) settings: the released ones for "xl", otherwise a smaller model and a smaller codebook."""
    if size == "xl":
        return released(), vq16()
    small = {"layers": 6, "heads": 8, "width": 512, "vocabulary": 2048, "grid": 16}
    vq = VqConfig(ch_mult=(1, 1, 2, 2, 4), base_channels=64, codebook_size=2048)
    return ModelConfig.model_validate(released().model_dump() | small | {"distill": None}), vq


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

    @property
    def seconds(self) -> float:
        return statistics.median(self.whole)


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


def sides(net: TokenAR, right: Tensor, text: Tensor, compiled: bool) -> dict[str, Callable[[], list[float]]]:
    """The published way and our modes, each drawing one picture. By default only a GPU compiles, and only ours."""
    mode = True if compiled else None
    plain = Plain(net, net.config.max_references, SAMPLING, compiled)
    chosen = {
        "plain": lambda: plain.draw(right, text),
        "free": ours(net, right, text, copies="drawn", compile=mode),
        "forced": ours(net, right, text, compile=mode),
    }
    if compiled:
        return chosen
    return chosen | {
        "verified_all_right": ours(net, right, text, copies="verified", temperature=0.0),
        "verified_all_wrong": ours(net, right + 1, text, copies="verified", temperature=0.0),
    }


def timed(runs: dict[str, Callable[[], list[float]]], rounds: int, label: str) -> dict[str, Side]:
    """Let the sides take turns."""
    found = {name: Side() for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            clock = run()
            found[name].add(clock)
            print(f"{label} {name}: {clock[2] - clock[0]:.2f} s, prefill {clock[1] - clock[0]:.2f} s", flush=True)
    return found


def vq_seconds(tokenizer: VqTokenizer, tokens: int, device: torch.device) -> float:
    """Seconds to decode a picture."""
    codes = torch.zeros(1, tokens, dtype=torch.int64)
    return statistics.median(seconds(lambda: tokenizer.decode(codes), device, 3))


def ratios(label: str, middle: dict[str, float]) -> dict[str, float]:
    """The two ratios of one setting."""
    return {
        f"ratio_{label}_equal_work": round(middle["plain"] / middle["free"], 2),
        f"ratio_{label}_left_out": round(middle["plain"] / middle["forced"], 2),
    }


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
    runs = sides(net, right, text, compiled=False)
    by_default = timed(runs, given.rounds, "default")
    quick = sides(net, right, text, compiled=True)
    first = timed(quick, 2 if device.type == "cuda" else 1, "first")  # on a GPU the second turn captures graphs
    compiled = timed(quick, given.rounds, "compiled")
    tokenizer = VqTokenizer(VqNetwork(vq).eval(), config.grid * vq.reduction, device)
    middle, fast = ({name: side.seconds for name, side in found.items()} for found in (by_default, compiled))
    speed = bandwidth(device)
    moved = {"plain": plain_bytes(net, config.max_references)} | {
        name: step_bytes(runs[name].decoder)  # type: ignore[attr-defined]
        for name in ("forced", "free")
    }
    decoding = {name: middle[name] - statistics.median(by_default[name].prefill) for name in moved}
    print(json.dumps({
        "benchmark": "sample", "size": given.size, "parameters": sum(p.numel() for p in net.parameters()),
        "tokens": config.image_tokens, "blocks": config.source_blocks, "guidance": SAMPLING["guidance"],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        **ratios("default", middle), **ratios("compiled", fast),
        **{f"{name}_s": round(value, 3) for name, value in middle.items()},
        **{f"compiled_{name}_s": round(value, 3) for name, value in fast.items()},
        **{f"{name}_compile_s": round(side.whole[0] - fast[name], 1) for name, side in first.items()},
        **{f"{name}_prefill_s": round(statistics.median(side.prefill), 3) for name, side in by_default.items()},
        "vq_decode_s": round(vq_seconds(tokenizer, config.image_tokens, device), 3),
        "bandwidth_gb_per_s": round(speed / 1e9, 2),
        **{f"{name}_gb_moved": round(value / 1e9, 2) for name, value in moved.items()},
        **{f"{name}_share_of_bandwidth": round(moved[name] / decoding[name] / speed, 3) for name in moved},
        **({"goal": GOAL} if given.size == "xl" else {}),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
