"""Running as one process or as several under torchrun: this process's rank and device, and collective operations."""

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

from data_schemas.errors import UserError
from tokenar.device import exact_float32

PATIENCE = timedelta(days=7)
"""How long processes wait for each other in the host's group. In sampling or evaluation one process may well be an hour
behind the others. The groups for tensors keep their usual timeout of minutes, because a process that is late there has
died."""


@dataclass(frozen=True)
class Workers:
    """This process's ``rank`` among ``world`` processes, and its device.

    ``host`` is a group that communicates on the CPU. It is used to wait for each other and to exchange Python objects.
    """

    rank: int
    world: int
    device: torch.device
    host: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process of rank 0, which logs and saves."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.world > 1:
            dist.barrier(self.host)

    def total(self, value: Tensor) -> Tensor:
        """Sum ``value`` over all processes, in place, and return it."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.host)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is True in at least one process."""
        if self.world == 1:
            return flag
        raised = torch.tensor(float(flag))
        dist.all_reduce(raised, group=self.host)
        return bool(raised)


def this_process() -> Workers:
    """This process as torchrun's environment variables describe it, or a single process without them.

    Selects this process's GPU. Does not form a process group.
    """
    exact_float32()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"process {device.index} of this machine has no GPU of its own, there are {torch.cuda.device_count()}; "
                "start torchrun with as many processes as there are GPUs"
            )
        torch.cuda.set_device(device)
    return Workers(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), device)


_joined: Workers | None = None


@contextmanager
def workers() -> Iterator[Workers]:
    """Within the block, the processes that torchrun started form a process group; without torchrun, a single process.

    A nested block uses the group of the outer one. The group must not be left and formed again, because the processes
    would find each other's old addresses.
    """
    global _joined
    if _joined is not None:
        yield _joined
        return
    group = this_process()
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
    """A new group of all processes that communicates on the CPU, with a long timeout. All processes must call this."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group
