"""Training steps on a device: how fast, how much memory, and whether anything waits for the device within a step."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checks.scale import REFERENCES, Check, Scale, drawn_net, inputs_for, now, peak_gb, relative, require, seconds
from torch.distributed.tensor import DTensor

from tokenar.config import TrainConfig
from tokenar.data.samples import Batch, Position
from tokenar.device import repeatable
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers
from tokenar.train.batches import MicroBatch, StepBatches
from tokenar.train.checkpoint import Checkpoints
from tokenar.train.log import TRAINING_PASSES, measured_flops
from tokenar.train.step import Step


class Stepper:
    """The trainer's step on random codes and features, as tokenar-encode stores them, in pinned memory on a GPU."""

    def __init__(self, scale: Scale, batch: int = 2, *, exact: bool = False, **settings: Any):
        """``exact`` takes the smaller network of the comparisons; ``settings`` are fields of TrainConfig."""
        model = scale.exact_model() if exact else scale.model()
        values = {"model": model, "precision": "bfloat16" if scale.full else "float32", "compile": False, "seed": 3}
        self.config = TrainConfig.model_construct(**(values | settings))
        self.net = drawn_net(model, scale.device)
        self.group = Workers(0, 1, scale.device)
        self.trainer = Step(self.net, self.config, self.group)
        cpu = inputs_for(model, torch.device("cpu"), batch)
        stored = Batch(cpu.sources, cpu.text, cpu.picture, cpu.text_mask)
        draws = torch.rand(batch, generator=torch.Generator().manual_seed(0))
        micro_batch = MicroBatch(stored, draws)
        self.stored = micro_batch.pinned() if scale.on_gpu else micro_batch
        self.batch, self.scored = batch, batch * self.net.layout(REFERENCES).target_tokens

    def step(self, number: int) -> None:
        """One optimiser step."""
        self.trainer.update(StepBatches(number, [self.stored], self.batch, self.scored, REFERENCES, Position()))

    def state(self) -> list[torch.Tensor]:
        """Copies of the weights and of the optimiser's state."""
        moments = (value for state in self.trainer.optimizer.state.values() for value in state.values())
        return [tensor.detach().clone() for tensor in itertools.chain(self.net.parameters(), moments)]

    def save(self, folder: Path) -> None:
        saved = Checkpoints(folder, 1, self.group)
        saved.save(1, self.net, self.trainer.optimizer, {})
        saved.wait()

    def load(self, folder: Path) -> None:
        Checkpoints(folder, 1, self.group).load(self.net, self.trainer.optimizer)


def throughput(batch: int, recomputed: str = "none", compiled: bool = True) -> Check:
    """The check of one way to train: samples a second, the share of the measured rate of matrix products, memory. What
    does not fit the memory is told as such."""

    def check(scale: Scale) -> dict[str, Any]:
        try:
            return measure(scale)
        except torch.OutOfMemoryError:
            return {"batch": batch, "memory": "does not fit"}

    def measure(scale: Scale) -> dict[str, Any]:
        size = batch if scale.full else 2
        settings = {"activation_checkpointing": recomputed, "compile": compiled and scale.full}
        trained, numbers = Stepper(scale, size, **settings), itertools.count()
        begun = now(scale.device)
        trained.step(next(numbers))
        first = now(scale.device) - begun
        taken = statistics.median(seconds(lambda: trained.step(next(numbers)), scale.device, 5 if scale.full else 2, 2))
        flops = TRAINING_PASSES * trained.net.flops(REFERENCES) * size
        rate = measured_flops(scale.device, scale.dtype, 8192 if scale.on_gpu else 256)
        return {
            "batch": size, "samples_per_s": round(size / taken, 3), "mfu": round(flops / taken / rate, 3),
            "first_step_s": round(first, 2), "memory_gb": peak_gb(scale.device),
        }  # fmt: skip

    return check


def recomputing_changes_nothing(scale: Scale) -> dict[str, Any]:
    """Weights after two steps with and without recomputing."""
    kept = {}
    with repeatable(True):  # Adam makes of a last digit of a small gradient much more than a last digit
        for how in ("none", "selective", "block"):
            trained = Stepper(scale, exact=True, activation_checkpointing=how, precision="float32")
            for number in range(2):
                trained.step(number)
            kept[how] = torch.cat([p.detach().flatten() for p in trained.net.parameters()])
    figures = {how: relative(kept[how], kept["none"]) for how in ("selective", "block")}
    require(max(figures.values()) < 1e-5, f"weights differ after recomputing: {figures}")
    return figures


def a_bad_step_changes_nothing(scale: Scale) -> dict[str, Any]:
    """A step whose gradients are not finite leaves weights and optimiser as they were (fused ones by found_inf).

    The step after it changes them again.
    """
    trained = Stepper(scale, exact=True)
    text = trained.stored.batch.text
    trained.step(0)
    before = trained.state()
    now(scale.device)  # the step reads the pinned text when the device comes to it
    good, text[0, 0, 0] = text[0, 0, 0].clone(), float("nan")
    trained.step(1)
    changed = sum(not torch.equal(a, b) for a, b in zip(before, trained.state(), strict=True))
    require(changed == 0, f"{changed} tensors changed in a step without finite gradients")
    text[0, 0, 0] = good
    trained.step(2)
    require(all(tensor.isfinite().all() for tensor in trained.state()), "the step after it is not finite")
    same = sum(torch.equal(a, b) for a, b in zip(before, trained.state(), strict=True))
    require(same < len(before) / 10, f"{same} of {len(before)} tensors did not change in the step after")
    return {"changed_tensors": changed, "fused": bool(trained.trainer.optimizer.defaults["fused"])}


def nothing_waits(scale: Scale) -> dict[str, Any]:
    """A whole step under torch's sync debug mode: a host that waited for the GPU would raise an error."""
    trained = Stepper(scale, exact=True, ema=0.99, activation_checkpointing="selective")
    for number in range(2):
        trained.step(number)
    with waiting_is_an_error(scale):
        trained.step(2)
    return {"watched": scale.on_gpu}


@contextmanager
def waiting_is_an_error(scale: Scale) -> Iterator[None]:
    """Inside, a call that makes the host wait for the GPU raises an error."""
    if not scale.on_gpu:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def spread(scale: Scale) -> dict[str, Any]:
    """A step under DDP and under FSDP2 with a group of one process (NCCL on a GPU): the same weights as without."""
    figures = {}
    with repeatable(True):
        plain = Stepper(scale, exact=True, precision="float32")
        plain.step(0)
        expected = [p.detach().clone() for p in plain.net.parameters()]
        dist.init_process_group("nccl" if scale.on_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            for mode in ("ddp", "fsdp"):
                trained = Stepper(scale, exact=True, precision="float32", parallel=mode)
                trained.step(0)
                require(type(trained.trainer.module) is not TokenAR, f"{mode} left the network as it was")
                found = [p.full_tensor() if isinstance(p, DTensor) else p for p in trained.net.parameters()]
                figures[mode] = max(relative(a, b) for a, b in zip(found, expected, strict=True))
        finally:
            dist.destroy_process_group()
    require(max(figures.values()) < 1e-5, f"weights differ: {figures}")
    return figures


CHECKS = {
    "recomputing_changes_nothing": recomputing_changes_nothing,
    "a_bad_step_changes_nothing": a_bad_step_changes_nothing,
    "training_without_waiting": nothing_waits,
    "ddp_and_fsdp": spread,
    "training_speed": throughput(4),
    "training_speed_selective": throughput(8, "selective"),
    "training_speed_block": throughput(16, "block"),
    "training_speed_eager": throughput(2, compiled=False),  # uncompiled, 4 need 87 GB (tokenar/train/memory.py)
}
