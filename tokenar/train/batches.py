"""The stream of batches that one process (rank) trains on, cut into micro-batches and read ahead in threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenar.config import TrainConfig
from tokenar.data.prefetch import Prefetched
from tokenar.data.samples import Batch, InMemory, Order, Position, Samples, collate, rank_parts
from tokenar.data.targets import with_target
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers

READERS = 4
"""Threads that read samples from disk ahead of the training. Samples that are in memory are read by one thread."""


@dataclass
class MicroBatch:
    """Samples that go through the network in one forward and backward pass.

    ``draws`` [B] float32 in [0, 1) decides for each sample which conditions are dropped (guidance drops). ``counted``
    is 0 for a filler: a rank that has fewer samples than the others still has to run as many passes as they do, and
    the filler's loss is multiplied by zero.
    """

    batch: Batch
    draws: Tensor
    counted: int = 1

    def pinned(self) -> MicroBatch:
        """The micro-batch in pinned memory. A copy from other memory may wait until the GPU has done all its work."""
        return MicroBatch(self.batch.pinned(), self.draws.pin_memory(), self.counted)


@dataclass
class StepBatches:
    """The micro-batches of one rank for optimiser step ``step``, counted from 0.

    ``samples`` and ``scored_tokens`` count the whole batch over all ranks. Every sample of a batch has the same number
    of ``references``. ``next_position`` is where the batch after this one begins in the data.
    """

    step: int
    micro_batches: list[MicroBatch]
    samples: int
    scored_tokens: int
    references: int
    next_position: Position

    def picture_tokens(self, net: TokenAR) -> int:
        """Scored tokens of the target pictures, without those of the reference copies; over all ranks."""
        return self.samples * net.config.image_tokens


def rank_batches(
    order: Order, first: int, samples: Samples, config: TrainConfig, net: TokenAR, group: Workers
) -> Prefetched[Any, StepBatches]:
    """This rank's batches from step ``first`` on, in the order of ``order``. The stream never ends.

    The draws depend only on the seed and the step, so a resumed run repeats them.
    """

    special = net.config.instruct_mode == "special"

    def batches() -> Iterator[tuple[int, int, list[int], Position]]:
        step = first
        while True:
            epoch, chosen = order.position.epoch, order.next()
            yield step, epoch, chosen, order.position
            step += 1

    def read(item: tuple[int, int, list[int], Position]) -> StepBatches:
        step, epoch, chosen, next_position = item
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        draws = torch.rand(len(chosen), generator=generator)
        targets = torch.rand(len(chosen), generator=generator).tolist() if special else None
        micro_batches = []
        for places in rank_parts(len(chosen), config.batch, group.rank, group.world, config.accumulation):
            taken = places or [0]  # a filler has the batch's first sample
            own = [samples.read(chosen[i], epoch) for i in taken]
            if targets is not None:
                own = [with_target(sample, targets[i], net.config) for sample, i in zip(own, taken, strict=True)]
            batch = collate(own, net.config.background)
            micro_batch = MicroBatch(batch, draws[taken], counted=int(bool(places)))
            micro_batches.append(micro_batch.pinned() if group.device.type == "cuda" else micro_batch)
        references = samples.references[chosen[0]]
        scored_tokens = len(chosen) * net.layout(references).target_tokens
        return StepBatches(step, micro_batches, len(chosen), scored_tokens, references, next_position)

    return Prefetched(batches(), read, 1 if isinstance(samples, InMemory) else READERS)
