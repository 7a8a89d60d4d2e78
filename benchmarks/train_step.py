"""Speed of a training step: the trainer on encoded samples, compared to the published trainer's way (published.py).

Both have weights of the same sizes and the same optimiser, and take turns on the same machine: first as they are by
default on it, then compiled. The last line is one JSON object with four ratios of seconds, published over ours. For
``equal_work`` both read the codes of three references and train on them. For ``left_out`` the samples have two
references; the published way then runs its frozen encoders in the step (VQ on every picture, T5 on every prompt) and
trains on a grey third reference too.

python benchmarks/train_step.py                          # a small model on a CPU, in float32
python benchmarks/train_step.py --size xl --batch 4      # GPT-XL on a GPU, in bfloat16
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from checks.scale import seconds
from published import hidden
from torch import Tensor, nn
from torch.nn import functional as F

from tokenar.config import TrainConfig
from tokenar.data.samples import Batch, Position
from tokenar.encoders.config import VqConfig, vq16
from tokenar.encoders.vq import VqNetwork, VqTokenizer
from tokenar.model.config import ModelConfig, released, tokenar_xl
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers
from tokenar.train.batches import MicroBatch, StepBatches
from tokenar.train.log import TRAINING_PASSES, memory_gb, peak_flops
from tokenar.train.optimizer import parameter_groups
from tokenar.train.step import Step

REFERENCES, SLOTS = 2, 3
GOAL = {"mfu": 0.45, "samples_per_s": 11.0}
"""Target for GPT-XL on one H100 with two references."""


@dataclass
class Size:
    """The settings of one size: our model, the plain step's model, the VQ tokenizer, and the arguments of T5Config."""

    ours: ModelConfig
    plain: ModelConfig
    vq: VqConfig
    t5: dict[str, int]


def cpu_size() -> Size:
    """128 pixels, 64 tokens an image. The encoders are a VQ-16 of half the width and a T5-base.

    The trained model is scaled down more than the encoders, as in a small run with published encoders.
    """
    small = {"layers": 6, "heads": 4, "width": 256, "vocabulary": 4096, "grid": 8, "text_tokens": 24,
             "text_width": 768, "instruct_tokens": 24, "distill": None}  # fmt: skip
    ours, plain = (ModelConfig.model_validate(model.model_dump() | small) for model in (tokenar_xl(), released()))
    vq = VqConfig(ch_mult=(1, 1, 2, 2, 4), base_channels=64, codebook_size=4096)
    return Size(ours, plain, vq, {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12})


def xl_size() -> Size:
    """The published sizes, without the teacher on either side."""
    ours, plain = (
        ModelConfig.model_validate(model.model_dump() | {"distill": None}) for model in (tokenar_xl(), released())
    )
    return Size(ours, plain, vq16(), {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32})


@dataclass
class Raw:
    """The content of a shard: pictures [B, R+2, 3, S, S] in [-1, 1] (references, background, target), and the prompts'
    token ids ``words`` [B, T] int64 with their mask [B, T]."""

    pictures: Tensor
    words: Tensor
    mask: Tensor


def raw_samples(size: Size, batch: int, device: torch.device) -> Raw:
    generator = torch.Generator().manual_seed(0)
    side = size.ours.grid * size.vq.reduction
    pictures = torch.rand(batch, REFERENCES + 2, 3, side, side, generator=generator) * 2 - 1
    words = torch.randint(1000, (batch, size.ours.text_tokens), generator=generator)
    mask = torch.arange(size.ours.text_tokens) < size.ours.text_tokens // 3
    return Raw(pictures.to(device), words.to(device), mask.expand(batch, -1).to(device))


def with_grey(raw: Raw) -> Tensor:
    """The pictures with a grey one for each missing reference, [B, SLOTS + 2, 3, S, S]."""
    grey = torch.zeros_like(raw.pictures[:, : SLOTS - REFERENCES])
    return torch.cat([raw.pictures[:, :REFERENCES], grey, raw.pictures[:, REFERENCES:]], dim=1)


class Encoders:
    """A VQ tokenizer in float32 and a T5 in ``dtype``, with random weights."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype):
        from transformers import T5Config, T5EncoderModel

        torch.manual_seed(0)
        self.tokenizer = VqTokenizer(VqNetwork(size.vq).eval(), size.ours.grid * size.vq.reduction, device, batch=64)
        config = T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **size.t5)
        self.text = T5EncoderModel(config).eval().to(device, dtype)

    @torch.no_grad()
    def codes(self, pictures: Tensor) -> Tensor:
        return self.tokenizer.encode(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])

    @torch.no_grad()
    def features(self, raw: Raw) -> Tensor:
        return self.text(input_ids=raw.words, attention_mask=raw.mask.long()).last_hidden_state.float()


@dataclass
class Coded:
    """What a step trains on: sources [B, R+1, N], text [B, T, C], picture [B, N], and the text's mask [B, T]."""

    sources: Tensor
    text: Tensor
    picture: Tensor
    mask: Tensor


def coded(encoders: Encoders, raw: Raw, references: int) -> Coded:
    """The raw samples as encoders see them, with grey pictures in the place of missing references."""
    codes = encoders.codes(with_grey(raw) if references == SLOTS else raw.pictures)
    return Coded(codes[:, :-1], encoders.features(raw), codes[:, -1], raw.mask)


def plain_step(size: Size, read: Callable[[], Coded], dtype: torch.dtype, compiled: bool) -> Callable[[], object]:
    """A step in the published trainer's way; ``read`` gives the batch. docs/differences.md says what it does
    differently from ours."""
    sample = read()
    device = sample.text.device
    net = TokenAR(size.plain).to(device).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(net, 0.05, decay_tables=True), lr=1e-4, betas=(0.9, 0.95), fused=device.type == "cuda"
    )
    layout = net.layout(SLOTS)
    rotary = net.tables(layout)[0]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(x: Tensor) -> Tensor:
        return F.linear(hidden(net, x, rotary[: x.shape[1]], attend), net.head).float()

    network = torch.compile(forward, dynamic=False) if compiled else forward

    def step() -> object:
        sample = read()
        wanted = net.target_tokens(sample.sources, sample.picture)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            target = net.embed_target(wanted[:, :-1], layout)
            x = torch.cat([net.embed_prefix(sample.sources, sample.text), target], dim=1)
            logits = network(x)[:, layout.prefix - 1 :].contiguous()
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def trainer_step(
    size: Size, sample: Coded, dtype: torch.dtype, recompute: str, compiled: bool | None = None
) -> Callable[[], object]:
    """Our trainer's step, on samples as tokenar-encode stores them. By default it is compiled on a GPU."""
    device, (batch, blocks) = sample.text.device, sample.sources.shape[:2]
    stored = Batch(sample.sources.cpu(), sample.text.cpu(), sample.picture.cpu(), sample.mask.cpu())
    micro_batch = MicroBatch(stored, torch.full((batch,), 0.5))
    if device.type == "cuda":
        micro_batch = micro_batch.pinned()
    config = TrainConfig.model_construct(
        model=size.ours, precision="bfloat16" if dtype == torch.bfloat16 else "float32",
        compile=device.type == "cuda" if compiled is None else compiled, activation_checkpointing=recompute,
    )  # fmt: skip
    trained = Step(TokenAR(size.ours).to(device), config, Workers(0, 1, device))
    scored = batch * trained.net.layout(blocks - 1).target_tokens
    numbers = itertools.count()

    def step() -> object:
        trained.update(StepBatches(next(numbers), [micro_batch], batch, scored, blocks - 1, Position()))
        return trained.sums

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["cpu", "xl"], default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each side a round")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns")
    parser.add_argument("--checkpointing", choices=["none", "selective", "block"], default="none")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, dtype = (xl_size(), torch.bfloat16) if given.size == "xl" else (cpu_size(), torch.float32)
    encoders, raw = Encoders(size, device, dtype), raw_samples(size, given.batch, device)
    full, two = coded(encoders, raw, SLOTS), coded(encoders, raw, REFERENCES)
    middle: dict[str, float] = {}
    for label, compiled in (("default", None), ("compiled", True)):
        sides = {
            "plain": plain_step(size, lambda: coded(encoders, raw, SLOTS), dtype, bool(compiled)),
            "plain_equal": plain_step(size, lambda: full, dtype, bool(compiled)),
            "trainer": trainer_step(size, two, dtype, given.checkpointing, compiled),
            "trainer_equal": trainer_step(size, full, dtype, given.checkpointing, compiled),
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(given.rounds):
            warmup = 3 if turn == 0 else 1
            for name, step in sides.items():
                taken[name] += seconds(step, device, given.steps, warmup=warmup)
        middle |= {f"{label}_{name}": statistics.median(values) for name, values in taken.items()}
        print({name: round(value, 4) for name, value in middle.items()}, flush=True)
        sides.clear()
        gc.collect()  # a compiled network refers to itself, and would keep its memory
    with torch.device("meta"):
        flops = TRAINING_PASSES * TokenAR(size.ours).flops(REFERENCES) * given.batch
    mfu = flops / middle["default_trainer"] / peak_flops(device, dtype)
    print(json.dumps({
        "benchmark": "train_step", "size": given.size, "batch": given.batch, "device": _name(device),
        **{f"ratio_{label}_{kind}": round(middle[f"{label}_plain{end}"] / middle[f"{label}_trainer{end}"], 2)
           for label in ("default", "compiled") for kind, end in (("equal_work", "_equal"), ("left_out", ""))},
        **{f"{name}_samples_per_s": round(given.batch / value, 3) for name, value in middle.items()},
        "mfu": round(mfu, 3), "memory_gb": round(memory_gb(device), 2),
        **({"goal": GOAL} if given.size == "xl" else {}),
    }))  # fmt: skip


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
