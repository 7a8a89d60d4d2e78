"""One optimiser step: the loss, gradients summed over micro-batches and ranks, and a guard against NaN and infinity.

Shape legend: B samples, D width, V vocabulary, E target blocks, N tokens an image (so E N scored tokens a sample).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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
from tokenar.data.samples import Batch
from tokenar.device import strictly_repeatable
from tokenar.model.copying import Pointers
from tokenar.model.linear import product
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers
from tokenar.train.batches import MicroBatch, StepBatches
from tokenar.train.optimizer import Average, learning_rate, make_optimizer, step_if
from tokenar.train.parallel import clip, parallelise
from tokenar.weight_files import are_finite

CHUNK_LOGITS = 1 << 25
"""The most logits in memory at once: 128 MB in float32."""
COMPILED_FORMS = 64
"""Limit of torch.compile for the variants of one block in a process. One network needs up to 8: batches differ in the
numbers of samples and references, and run with and without gradients. A sweep trains many networks."""
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


# The loss


def token_losses(
    hidden: Tensor, head: Tensor, wanted: Tensor, pointers: Pointers | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the scored tokens in nats, as (sum over all tokens, loss of each token [B, E N]), float32.

    hidden [B, E N, D], head [V, D], wanted [B, E N] int64, pointers: what the copy head says, if there is one. Only
    the sum carries a gradient. More than ``CHUNK_LOGITS`` logits are computed in chunks and computed again in the
    backward pass, because all logits together would be the largest tensor of the step.
    """
    if pointers is not None:
        return _copy_losses(hidden, head, wanted, pointers)
    rows, tokens = hidden.flatten(0, 1), wanted.flatten()
    size = max(1, CHUNK_LOGITS // len(head))
    if len(rows) <= size:
        total, each = _chunk_losses(rows, head, tokens)
        return total, each.view_as(wanted)
    chunks = [
        checkpoint(_chunk_losses, chunk_rows, head, chunk_tokens, use_reentrant=False, preserve_rng_state=False)
        for chunk_rows, chunk_tokens in zip(rows.split(size), tokens.split(size), strict=True)
    ]
    totals, each_of = zip(*chunks, strict=True)
    return torch.stack(totals).sum(), torch.cat(each_of).view_as(wanted)


def _chunk_losses(rows: Tensor, head: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    # One log_softmax serves both results. The sum of F.cross_entropy(..., reduction="none") has the same gradients, but
    # adds up in another order, which changes the last digit of the logged losses.
    log_probabilities = F.log_softmax(product(rows, head).float(), dim=-1)
    total = F.nll_loss(log_probabilities, tokens, reduction="sum")
    return total, F.nll_loss(log_probabilities.detach(), tokens, reduction="none")


def _copy_losses(hidden: Tensor, head: Tensor, wanted: Tensor, pointers: Pointers) -> tuple[Tensor, Tensor]:
    """``token_losses`` for a model with a copy head, in chunks of positions: each sample has sources of its own."""
    size = max(1, CHUNK_LOGITS // (len(hidden) * (len(head) + pointers.codes.shape[1])))

    def chunk(rows: Tensor, tokens: Tensor, own: Pointers) -> Tensor:
        return own.losses(product(rows, head).float(), tokens)

    parts = zip(hidden.split(size, 1), wanted.split(size, 1), pointers.split(size), strict=True)
    if size >= hidden.shape[1]:
        each = chunk(hidden, wanted, pointers)
    else:
        each = torch.cat(
            [checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts], dim=1
        )
    return each.sum(), each.detach()


def weighted_losses(
    copies_weight: float, picture: int, hidden: Tensor, head: Tensor, wanted: Tensor, pointers: Pointers | None
) -> tuple[Tensor, Tensor]:
    """``token_losses`` with weight ``copies_weight`` for all tokens but the last ``picture``: the reference copies."""
    sizes = [wanted.shape[1] - picture, picture]
    if copies_weight == 1 or not sizes[0]:
        return token_losses(hidden, head, wanted, pointers)
    pointed = [None, None] if pointers is None else pointers.split(sizes)
    parts = zip(hidden.split(sizes, 1), wanted.split(sizes, 1), pointed, strict=True)
    (of_copies, copied), (of_picture, drawn) = (token_losses(rows, head, own, said) for rows, own, said in parts)
    return copies_weight * of_copies + of_picture, torch.cat([copied, drawn], dim=1)


@dataclass
class Losses:
    """The losses of one micro-batch, on the device.

    ``total`` is the summed cross entropy of the scored tokens, weighted as the settings say, ``tokens`` [B, E N] the
    loss of each of them without weight or gradient, ``teachers`` [K] the mean squared error to each teacher's features,
    summed over the samples.
    """

    total: Tensor
    tokens: Tensor
    teachers: Tensor


def teacher_losses(features: Tensor, wanted: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean squared error to each of K teachers, summed over the samples, [K]. Features and ``wanted`` [B, n, D] have
    those of each teacher side by side, of which there are ``sizes`` for an image."""
    pairs = zip(features.float().split(sizes, 1), wanted.split(sizes, 1), strict=True)
    return torch.stack([(own - teacher).pow(2).mean((1, 2)).sum() for own, teacher in pairs])


def losses(
    net: torch.nn.Module, batch: Batch, config: TrainConfig, draws: Tensor | None = None, distill: bool = False
) -> Losses:
    """Run ``net`` on a batch and compute its losses. ``draws`` [B] in [0, 1) decides the guidance drops; None: none."""
    enabled = config.precision == "bfloat16"
    score = functools.partial(weighted_losses, config.copies_weight, batch.picture.shape[1])
    with torch.autocast(batch.sources.device.type, torch.bfloat16, enabled=enabled):
        output = net(
            batch.sources, batch.text, batch.picture, draws, config.drops, text_mask=batch.text_mask,
            instruct=batch.instruct, with_features=distill, score=score,
        )  # fmt: skip
    (total, tokens), features = output if distill else (output, None)
    teachers = torch.zeros(0, device=tokens.device)
    if features is not None:
        assert batch.teacher is not None
        teachers = teacher_losses(features, batch.teacher, list(config.model.teachers.values()))
    return Losses(total, tokens, teachers)


# Activation checkpointing


def recompute_blocks(net: TokenAR, how: str) -> None:
    """Set up activation checkpointing of the transformer blocks.

    "none" keeps all activations for the backward pass, "block" only each block's input, and "selective" also the
    output of attention, which is the most expensive part to compute again for long sequences.
    """
    if how == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for block in net.layers:
        block.forward = _recomputed(block.forward, options)


def _recomputed(forward: Callable[..., Tensor], options: dict[str, Any]) -> Callable[..., Tensor]:
    # A nested function instead of functools.partial, because torch.compile traces into it.
    def run(x: Tensor, rotary: Tensor, cache: None, mask: Tensor | None, last: int | None) -> Tensor:
        # Without gradients there is nothing to recompute. checkpoint() would also read the random number generators'
        # state, which fails while a CUDA graph is being captured.
        if not torch.is_grad_enabled():
            return forward(x, rotary, cache, mask, last)
        return checkpoint(forward, x, rotary, None, mask, last, **options)

    return run


def _policy(context: object, op: object, *arguments: object, **options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


# The step


def _set_up_compiler(device: torch.device) -> None:
    from torch._dynamo import config as dynamo  # slow to import

    # Above its limit torch runs new variants uncompiled, with a warning.
    dynamo.recompile_limit = max(dynamo.recompile_limit, COMPILED_FORMS)
    # Under DDP torch would cut each block into a graph for every 25 MB of its weights, so that gradients can be summed
    # while the rest of the graph runs. A block is a graph of its own already.
    dynamo.optimize_ddp = False
    if device.type == "cuda":
        from torch._inductor.codegen.triton import TritonOverrides

        # Since torch 2.13 some kernels draw four numbers at once and others one by one. A dropout mask that is computed
        # again may then differ from the forward pass's, and gradients are silently wrong (pytorch issue 198333).
        TritonOverrides._can_use_4x_random = staticmethod(lambda: False)  # type: ignore[method-assign]


class Step:
    """The network in training with its optimiser and its weight averages. ``update`` runs one optimiser step.

    ``update`` does not wait for the device. ``read``, ``check`` and ``check_weights`` do.
    """

    def __init__(self, net: TokenAR, config: TrainConfig, group: Workers):
        self.net, self.config, self.group = net, config, group
        recompute_blocks(net, config.activation_checkpointing)
        if config.compile:
            _set_up_compiler(group.device)
            for block in net.layers:
                block.compile()
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.module = parallelise(net, config.parallel, group, dtype)
        self.optimizer = make_optimizer(net, config)
        self.average = Average(net, config.ema) if config.ema else None
        # This rank's contribution to the last step's mean losses: what is trained on, the picture's, the reference
        # copies', the teachers'.
        self.sums = torch.zeros(3 + len(config.model.teachers), device=group.device)
        self.norm = torch.zeros((), device=group.device)
        # The first step (counted from 1) whose gradients were not finite, or 0.
        self._bad_step = torch.zeros((), dtype=torch.int64, device=group.device)

    @strictly_repeatable()
    def update(self, batches: StepBatches) -> float:
        """Run one optimiser step and return its learning rate. Dropout depends on (seed, step, rank) only.

        The gradient is that of the mean loss over all scored tokens of the whole batch, with the weights that the
        settings give them, however the batch is cut into micro-batches and ranks. A step whose gradients are not finite
        leaves weights and optimiser unchanged.
        """
        config, group, module = self.config, self.group, self.module
        torch.manual_seed((config.seed * 1_000_003 + batches.step) * group.world + group.rank)
        module.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.sums = torch.zeros_like(self.sums)
        for number, micro_batch in enumerate(batches.micro_batches):
            # DDP needs to sum gradients over the ranks only once, after the last micro-batch. FSDP sums after each one:
            # it then holds its shard of the gradients instead of all of them.
            last = number == len(batches.micro_batches) - 1
            with nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync():
                self._backward(micro_batch, batches)
        self.norm = clip(self.net.parameters(), config.clip)
        finite = self.norm.isfinite()
        rate = learning_rate(config, batches.step)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        step_if(self.optimizer, finite)
        if self.average is not None:
            self.average.update()
        self._bad_step = torch.where((self._bad_step == 0) & ~finite, batches.step + 1, self._bad_step)
        return rate

    def _backward(self, micro_batch: MicroBatch, batches: StepBatches) -> None:
        config, device = self.config, self.group.device
        batch, draws = micro_batch.batch.to(device), micro_batch.draws.to(device, non_blocking=True)
        result = losses(self.module, batch, config, draws, distill=config.teacher is not None)
        total, teachers = result.total * micro_batch.counted, result.teachers * micro_batch.counted
        counted = self._weighted_tokens(batches)
        loss = total / counted
        if config.teacher is not None:
            weights = teachers.new_tensor((config.distill_weight, config.clip_weight)[: len(teachers)])
            loss = loss + (weights * teachers).sum() / batches.samples
        # DDP and FSDP average gradients over the ranks. The losses here add up over the ranks, hence the factor.
        (loss * self.group.world).backward()
        n, pictures = self.net.config.image_tokens, batches.picture_tokens(self.net)
        means = (
            total.detach() / counted,
            result.tokens[:, -n:].sum() * micro_batch.counted / pictures,
            result.tokens[:, :-n].sum() * micro_batch.counted / max(1, batches.scored_tokens - pictures),
            *(teachers / batches.samples),
        )
        self.sums += torch.stack([mean.detach() for mean in means])

    def _weighted_tokens(self, batches: StepBatches) -> float:
        """The sum of the weights of the scored tokens of a whole batch."""
        pictures = batches.picture_tokens(self.net)
        return pictures + self.config.copies_weight * (batches.scored_tokens - pictures)

    @property
    def averages(self) -> dict[str, Tensor] | None:
        """The averaged weights by parameter name; None if the run keeps no averages."""
        return self.average.weights if self.average else None

    def read(self, batches: StepBatches) -> dict[str, float]:
        """The last step's mean losses over all ranks, and the norm of its gradients. All ranks must call it together.

        Cross entropies are in nats a token: "loss_target" over the target pictures, "loss_references" over the
        reference copies, "loss" over both with the weights that they are trained with. "loss_teacher" is the mean
        squared error to the teacher, without its weight, and "loss_teacher_clip" that to the second of two.
        """
        loss, target, copies, *teachers = self.group.total(self.sums.clone()).tolist()
        values = {"loss_target": target}
        if batches.scored_tokens > batches.picture_tokens(self.net):
            values["loss_references"] = copies
        values |= {"loss": loss, "grad_norm": float(self.norm)}
        if self.config.teacher is not None:
            values |= dict(zip(("loss_teacher", "loss_teacher_clip"), teachers, strict=False))
        return values

    def check_weights(self, step: int) -> None:
        """UserError if a weight or an average is not finite after ``step`` steps. All ranks must call it together.

        With a very high learning rate finite gradients can produce infinite weights. ``check`` would notice that only
        one step later, which is too late for a checkpoint that is saved now.
        """
        tensors = dict(self.net.named_parameters()) | {f"ema.{name}": t for name, t in (self.averages or {}).items()}
        local = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}
        finite = torch.stack(list(are_finite(local).values())).all()
        if self.group.total((~finite).float()):
            raise UserError(
                f"the weights are not finite after step {step}; set a lower --lr and continue with --overwrite, or "
                "resume from the last checkpoint"
            )

    def check(self) -> None:
        """UserError if the gradients of any step so far were not finite. That step did not change the weights."""
        if step := int(self._bad_step):
            raise UserError(
                f"the loss is not finite at step {step}; set a lower --lr and continue with --overwrite, or resume "
                "from the last checkpoint with other data"
            )
