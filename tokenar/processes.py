"""One process or several under torchrun: which one this is, on which device, and what all of them do together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tokenar.device import exact_float32

PATIENCE = timedelta(days=7)
"""How long processes wait for each other on the host. NCCL, and gloo for tensors, give up after minutes, as they must:
there a process that is missing has died. But an evaluation or a sampling may well leave one process an hour behind."""


@dataclass(frozen=True)
class Workers:
    """This process's place among ``world`` processes, and its device.

    ``host`` is for what is no work of the device: waiting, and handing each other objects.
    """

    rank: int
    world: int
    device: torch.device
    host: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier(self.host)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.host)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in some process."""
        if self.world == 1:
            return flag
        raised = torch.tensor(float(flag))
        dist.all_reduce(raised, group=self.host)
        return bool(raised)


def place() -> Workers:
    """This process's place by torchrun's environment variables, or alone; it takes its GPU, and joins nobody."""
    exact_float32()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return Workers(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), device)


_joined: Workers | None = None


@contextmanager
def workers() -> Iterator[Workers]:
    """The processes torchrun started, joined while the block runs, or this one alone.

    A block inside such a block keeps the outer one's group: processes that part and join again meet each other's old
    addresses.
    """
    global _joined
    if _joined is not None:
        yield _joined
        return
    group = place()
    if group.world == 1:
        yield group
        return
    starts = not dist.is_initialized()
    if starts:
        dist.init_process_group("nccl" if group.device.type == "cuda" else "gloo")
    _joined = replace(group, host=host_group())
    try:
        yield _joined
    finally:
        _joined = None
        if starts:
            dist.destroy_process_group()


def host_group() -> dist.ProcessGroup:
    """A group of all processes that talks over the host's network and is patient; all of them have to make it."""
    made = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(made, dist.ProcessGroup)
    return made
