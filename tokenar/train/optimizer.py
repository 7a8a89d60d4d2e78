"""The optimiser, its learning rate schedule, its weight decay groups, and moving averages of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenar.config import TrainConfig
from tokenar.model.transformer import TokenAR

LAST_SHARE = 0.05
"""The cosine and linear schedules end at this share of ``lr``."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, times a constant, linear or cosine schedule."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return config.lr * warm
    left = 1 - step / config.steps
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * warm * (LAST_SHARE + (1 - LAST_SHARE) * left)


def make_optimizer(net: TokenAR, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (paper, appendix B) for ``net``, which must already be on its device and distributed over the ranks."""
    groups = parameter_groups(net, config.weight_decay, decay_tables=config.decay_tables)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)


def step_if(optimizer: torch.optim.AdamW, finite: Tensor) -> None:
    """Run the optimiser's step if ``finite``, a bool tensor on the device, is True. The host does not wait for it."""
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # at 1 fused kernels change nothing
    optimizer.step()


def parameter_groups(net: TokenAR, weight_decay: float, *, decay_tables: bool = False) -> list[dict[str, Any]]:
    """Two parameter groups for AdamW: parameters with weight decay, and parameters without.

    Tensors of one dimension (norms, biases) never decay. With ``decay_tables`` all others do, as in the published
    program (docs/differences.md). Without it the tables (token and index embeddings, soft prompts, null tables) do not
    decay either, because decay would pull a row towards zero in every step in which the row is not used. Null tables
    that are frozen are not parameters and are in neither group.
    """
    tables = {id(net.img_uncond_embedding), id(net.cls_embedding.uncond_embedding)}
    tables |= {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in net.parameters():
        groups[parameter.dim() >= 2 and (decay_tables or id(parameter) not in tables)].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


class Average:
    """Exponential moving averages of a network's parameters.

    ``weights`` holds them by parameter name. With FSDP they are DTensors with the same shards as the parameters.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self._trained = dict(net.named_parameters())
        self.weights = {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * weight."""
        torch._foreach_lerp_(list(self.weights.values()), self._parameters(), 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block the network computes with the averages instead of its own weights."""
        own = [parameter.clone() for parameter in self._parameters()]
        _copy(self.weights.values(), self._parameters())
        try:
            yield
        finally:
            _copy(own, self._parameters())

    def _parameters(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._trained.values()]


@torch.no_grad()
def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    # torch._foreach_copy_ does not support DTensors.
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
