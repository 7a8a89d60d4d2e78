"""The optimiser, its learning rate, which weights decay, and averages of the weights."""

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
"""Of the learning rate, at the end of a schedule that falls."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then constant, or falling along a line or a cosine."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return config.lr * warm
    left = 1 - step / config.steps
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * warm * (LAST_SHARE + (1 - LAST_SHARE) * left)


def make_optimizer(net: TokenAR, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (spec/tokenar.md section 10) for the network as it lies on its device, spread over processes or not."""
    groups = parameter_groups(net, config.weight_decay, decay_tables=config.decay_tables)
    on_gpu = next(net.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=on_gpu)


def step_if(optimizer: torch.optim.Optimizer, good: Tensor) -> None:
    """Take the optimiser's step where ``good``, a bool on the device, is True; a fused one does not wait for it."""
    if optimizer.defaults["fused"]:
        optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]  # fused kernels change nothing at 1
        optimizer.step()
    elif good:
        optimizer.step()


def parameter_groups(net: TokenAR, weight_decay: float, *, decay_tables: bool = False) -> list[dict[str, Any]]:
    """Two groups for AdamW, {"params", "weight_decay"}: what decays and what does not.

    Norms and biases, the tensors of one dimension, never decay. ``decay_tables`` lets everything else decay, as
    released (spec/tokenar.md section 10). Without it the embeddings, soft prompts and null tables do not: decay would
    pull a row to zero in all the steps in which it is not used. Frozen null tables are no parameters and in neither
    group.
    """
    tables = {id(net.img_uncond_embedding), id(net.cls_embedding.uncond_embedding)}
    tables |= {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in net.parameters():
        groups[parameter.dim() >= 2 and (decay_tables or id(parameter) not in tables)].append(parameter)
    decayed, kept = groups[True], groups[False]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


class Average:
    """Exponential moving averages of a network's parameters, by name and spread like them."""

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self._now = dict(net.named_parameters())
        self.weights = {name: parameter.detach().clone() for name, parameter in self._now.items()}

    @torch.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * weight."""
        torch._foreach_lerp_(list(self.weights.values()), self._parameters(), 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The network has the averages for its weights inside the block."""
        own = [parameter.clone() for parameter in self._parameters()]
        _copy(self.weights.values(), self._parameters())
        try:
            yield
        finally:
            _copy(own, self._parameters())

    def _parameters(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._now.values()]


@torch.no_grad()
def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    """One by one: torch's copy of many at once does not know sharded tensors."""
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
