"""One optimiser step: losses in chunks, gradients over parts and processes, a guard against numbers that are none.

B batch, D width, V vocabulary, E N scored tokens of a sample, P patches of the teacher.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from data_schemas.errors import UserError
from tokenar.config import TrainConfig
from tokenar.data.samples import Batch, Position
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers
from tokenar.train.optimizer import Average, learning_rate, make_optimizer, step_if
from tokenar.train.parallel import clip, parallelise
from tokenar.weight_files import are_finite

CHUNK_LOGITS = 1 << 25
"""Logits that exist at once: 128 MB in float32."""
COMPILED_FORMS = 64
"""Forms of a block that one process compiles: up to 8 for a network, whose batches have different numbers of samples
and references, with gradients and without; and a sweep has many networks."""
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


# The loss


def token_losses(hidden: Tensor, head: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats of every scored token: (the sum, and each without gradient [B, E N]), float32.

    hidden [B, E N, D], head [V, D], wanted [B, E N] int64. Logits of more than ``CHUNK_LOGITS`` numbers are made in
    chunks, and again in the backward pass: all at once they would be the largest thing in memory.
    """
    rows, tokens = hidden.flatten(0, 1), wanted.flatten()
    size = max(1, CHUNK_LOGITS // len(head))
    if len(rows) <= size:
        total, each = _chunk_losses(rows, head, tokens)
        return total, each.view_as(wanted)
    found = [
        checkpoint(_chunk_losses, part, head, own, use_reentrant=False, preserve_rng_state=False)
        for part, own in zip(rows.split(size), tokens.split(size), strict=True)
    ]
    totals, each_of = zip(*found, strict=True)
    return torch.stack(totals).sum(), torch.cat(each_of).view_as(wanted)


def _chunk_losses(rows: Tensor, head: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    surprise = F.log_softmax(F.linear(rows, head).float(), dim=-1)
    return F.nll_loss(surprise, tokens, reduction="sum"), F.nll_loss(surprise.detach(), tokens, reduction="none")


@dataclass
class Losses:
    """Of one part, on the device: the scored tokens' sum, each token's loss [B, E N] without gradient, and the sum
    over samples of the mean squared error to the teacher."""

    total: Tensor
    tokens: Tensor
    teacher: Tensor


def losses(
    net: torch.nn.Module, batch: Batch, config: TrainConfig, draws: Tensor | None = None, distill: bool = False
) -> Losses:
    """What ``net`` makes of a batch on its device; ``draws`` [B] decide the guidance drops."""
    enabled = config.precision == "bfloat16"
    with torch.autocast(batch.sources.device.type, torch.bfloat16, enabled=enabled):
        found = net(
            batch.sources, batch.text, batch.picture, draws, config.drops, text_mask=batch.text_mask,
            with_features=distill, score=token_losses,
        )  # fmt: skip
    (total, tokens), features = found if distill else (found, None)
    teacher = torch.zeros((), device=tokens.device)
    if features is not None:
        assert batch.teacher is not None
        teacher = (features.float() - batch.teacher).pow(2).mean((1, 2)).sum()
    return Losses(total, tokens, teacher)


# Recomputing


def recompute_blocks(net: TokenAR, how: str) -> None:
    """Let the blocks keep less for the backward pass: with "block" only what goes in, with "selective" also what
    attention gave, which at long sequences costs most to make again; with "none" everything."""
    if how == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for block in net.layers:
        block.forward = _recomputed(block.forward, options)


def _recomputed(forward: Callable[..., Tensor], options: dict[str, Any]) -> Callable[..., Tensor]:
    def run(*arguments: Any) -> Tensor:  # a function, and not functools.partial: the compiler looks into it
        if not torch.is_grad_enabled():  # nothing to recompute, and noting the generators' state may be forbidden
            return forward(*arguments)
        return checkpoint(forward, *arguments, **options)

    return run


def _policy(context: object, op: object, *arguments: object, **options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


# The step


@dataclass
class Part:
    """Some of a process's share of a batch; with ``counted`` 0 it only keeps in step with other processes."""

    batch: Batch
    draws: Tensor
    counted: int = 1


@dataclass
class Work:
    """One process's share of step number ``step``: its parts, the numbers of samples and scored tokens in the whole
    batch of all processes, its number of references, and the place in the data behind it."""

    step: int
    parts: list[Part]
    samples: int
    scored_tokens: int
    references: int
    behind: Position

    def picture_tokens(self, net: TokenAR) -> int:
        """Scored tokens that belong to the pictures and not to the references' copies."""
        return self.samples * net.config.image_tokens


class Step:
    """The network as it is trained, with its optimiser and averages; ``update`` is one optimiser step.

    Nothing waits for the device until ``read`` and ``check``.
    """

    def __init__(self, net: TokenAR, config: TrainConfig, group: Workers):
        self.net, self.config, self.group = net, config, group
        recompute_blocks(net, config.activation_checkpointing)
        if config.compile:
            from torch._dynamo import config as compiler  # takes long to import

            # Beyond its limit torch runs what is new uncompiled, with a warning.
            compiler.recompile_limit = max(compiler.recompile_limit, COMPILED_FORMS)
            for block in net.layers:
                block.compile()
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.module = parallelise(net, config.parallel, group, dtype)
        self.optimizer = make_optimizer(net, config)
        self.average = Average(net, config.ema) if config.ema else None
        self.sums = torch.zeros(3, device=group.device)  # this process's share of the last step's mean losses
        self.norm = torch.zeros((), device=group.device)
        self._bad = torch.zeros((), dtype=torch.int64, device=group.device)  # the first step that was not finite

    def update(self, work: Work) -> float:
        """One optimiser step; the learning rate. Dropout is drawn from (seed, step, rank).

        Gradients are those of the mean over all scored tokens of the whole batch, whatever part and process they are
        in. A step whose gradients are not finite changes nothing.
        """
        config, group, module = self.config, self.group, self.module
        torch.manual_seed((config.seed * 1_000_003 + work.step) * group.world + group.rank)
        module.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.sums = torch.zeros_like(self.sums)
        for number, part in enumerate(work.parts):
            # DDP need only add up gradients over processes once; FSDP adds up shards, which take less memory.
            last = number == len(work.parts) - 1
            with nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync():
                self._backward(part, work)
        self.norm = clip(self.net.parameters(), config.clip)
        good = self.norm.isfinite()
        rate = learning_rate(config, work.step)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        step_if(self.optimizer, good)
        if self.average is not None:
            self.average.update()
        self._bad = torch.where((self._bad == 0) & ~good, work.step + 1, self._bad)
        return rate

    def _backward(self, part: Part, work: Work) -> None:
        config, device = self.config, self.group.device
        batch, draws = part.batch.to(device), part.draws.to(device, non_blocking=True)
        found = losses(self.module, batch, config, draws, distill=config.teacher is not None)
        total, teacher = found.total * part.counted, found.teacher * part.counted
        loss = total / work.scored_tokens
        if config.teacher is not None:
            loss = loss + config.distill_weight * teacher / work.samples
        (loss * self.group.world).backward()  # gradients of processes are averaged, their losses are shares of a sum
        pictures = found.tokens[:, -self.net.config.image_tokens :].sum() * part.counted
        means = total.detach() / work.scored_tokens, pictures / work.picture_tokens(self.net), teacher / work.samples
        self.sums += torch.stack([mean.detach() for mean in means])

    @property
    def averages(self) -> dict[str, Tensor] | None:
        """The averaged weights by name, if there are."""
        return self.average.weights if self.average else None

    def read(self, work: Work) -> dict[str, float]:
        """The last step's mean losses over all processes, and the gradients' norm. Every process has to call it.

        "loss" is over all scored tokens, "loss_target" over the pictures', "loss_references" over the copies',
        "loss_teacher" the mean squared error to the teacher, before its weight.
        """
        loss, target, teacher = self.group.total(self.sums.clone()).tolist()
        found = {"loss": loss, "grad_norm": float(self.norm), "loss_target": target}
        if copies := work.scored_tokens - work.picture_tokens(self.net):
            found["loss_references"] = (loss * work.scored_tokens - target * work.picture_tokens(self.net)) / copies
        if self.config.teacher is not None:
            found["loss_teacher"] = teacher
        return found

    def check_weights(self, step: int) -> None:
        """UserError if what is about to be kept after ``step`` steps is not finite. Every process has to call it.

        A learning rate may be so high that finite gradients lead out of all numbers; the gradients of the step after
        would tell, but there may be none.
        """
        kept = dict(self.net.named_parameters()) | {f"ema.{name}": t for name, t in (self.averages or {}).items()}
        local = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in kept.items()}
        finite = torch.stack(list(are_finite(local).values())).all()
        if self.group.total((~finite).float()):
            raise UserError(
                f"the weights are not finite after step {step}; set a lower --lr and continue with --overwrite, or "
                "resume from the last checkpoint"
            )

    def check(self) -> None:
        """UserError if some step's gradients were not finite; the weights are still those before it."""
        if step := int(self._bad):
            raise UserError(
                f"the loss is not finite at step {step}; set a lower --lr and continue with --overwrite, or resume "
                "from the last checkpoint with other data"
            )
