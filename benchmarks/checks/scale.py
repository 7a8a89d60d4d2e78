"""What a check runs at: which device, and the sizes of a real machine or of a dry run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenar.encoders.config import VqConfig, vq16
from tokenar.model.config import ModelConfig, released, tokenar_xl
from tokenar.model.transformer import TokenAR

REFERENCES = 2


class Skipped(Exception):
    """A check that cannot run here; the message says what it lacks."""


@dataclass(frozen=True)
class Scale:
    """``full`` means GPT-XL at 512 pixels, in bfloat16; otherwise everything is tiny, in float32, for a dry run."""

    device: torch.device
    full: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the speed checks."""
        return torch.bfloat16 if self.full else torch.float32

    def model(self, **changes: object) -> ModelConfig:
        """GPT-XL as the paper's settings have it, or two narrow layers of the same kind."""
        tiny = {"layers": 2, "heads": 4, "width": 64, "vocabulary": 64, "grid": 6, "text_tokens": 8, "text_width": 32,
                "instruct_tokens": 4, "distill": None}  # fmt: skip
        small = {"distill": None} if self.full else tiny
        return ModelConfig.model_validate(tokenar_xl().model_dump() | small | changes)

    def published_model(self) -> ModelConfig:
        """The same sizes with the published program's settings."""
        kept = self.model().model_dump()
        sizes = {name: kept[name] for name in ("layers", "heads", "width", "vocabulary", "grid", "text_tokens",
                                               "text_width", "instruct_tokens", "distill")}  # fmt: skip
        return ModelConfig.model_validate(released().model_dump() | sizes)

    def exact_model(self, **changes: object) -> ModelConfig:
        """For comparisons in float32 and float64: a few layers, wide enough for the real kernels on a GPU."""
        sizes: dict[str, object] = {"layers": 4, "heads": 8, "width": 512, "vocabulary": 2048, "grid": 16}
        return self.model(**(sizes if self.full else {}), **changes)

    def vq(self) -> VqConfig:
        return vq16() if self.full else VqConfig(ch_mult=(1, 2), base_channels=32, z_channels=32, codebook_size=64)


DRAWN_ON_CPU = 50_000_000
"""Most parameters of a network whose weights are the same on every device. A CPU draws GPT-XL's in some 20 seconds."""


def drawn_net(config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> TokenAR:
    """A network of random weights, its head too, in evaluation mode."""
    torch.manual_seed(0)
    with torch.device("cpu" if config.parameters < DRAWN_ON_CPU else device):
        net = TokenAR(config).eval()
    if net.output is not None:
        torch.nn.init.normal_(net.output.weight, std=0.2)
    return net.to(device, dtype)


@dataclass
class Inputs:
    """sources [B, R+1, N], text [B, text_tokens, C], picture [B, N] and text_mask [B, text_tokens]."""

    sources: Tensor
    text: Tensor
    picture: Tensor
    text_mask: Tensor


def inputs_for(config: ModelConfig, device: torch.device, batch: int, references: int = REFERENCES) -> Inputs:
    """Random codes and features, the same on every device; a third of each text is padding."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(config.vocabulary, (batch, references + 2, config.image_tokens), generator=generator)
    text = torch.randn(batch, config.text_tokens, config.text_width, generator=generator)
    mask = (torch.arange(config.text_tokens) < max(1, 2 * config.text_tokens // 3)).expand(batch, -1)
    return Inputs(codes[:, :-1].to(device), text.to(device), codes[:, -1].to(device), mask.contiguous().to(device))


def now(device: torch.device) -> float:
    """A clock reading when the device has done everything that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device, turns: int, warmup: int = 1) -> list[float]:
    """Seconds of each turn, after ``warmup`` that do not count."""
    taken = []
    for turn in range(warmup + turns):
        begun = now(device)
        work()
        if turn >= warmup:
            taken.append(now(device) - begun)
    return taken


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in float64."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def require(condition: bool, message: str) -> None:
    """Fail the check unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def peak_gb(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None


Check = Callable[[Scale], dict[str, Any]]
