"""One process or several under torchrun: who am I, what processes do together, and how a network is spread over them.

``ddp`` keeps the whole network on every process. ``fsdp`` keeps a share of every parameter, gradient and optimiser
state on each and brings a block's parameters together while the block runs. ``hybrid`` does so within a node and keeps
a copy on every node, so that only gradients cross the network between them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from data_schemas.errors import UserError
from tokenar.device import exact_float32
from tokenar.model import TokenAR

Mode = Literal["ddp", "fsdp", "hybrid"]
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


def parallelise(net: TokenAR, mode: Mode, group: Workers, dtype: torch.dtype) -> nn.Module:
    """The module to call in place of ``net``, which must be on ``group.device`` with the same weights everywhere.

    Make the optimiser afterwards: ``fsdp`` and ``hybrid`` put DTensors in the place of the parameters, and ``net``
    itself comes back. With bfloat16 they compute on bfloat16 copies of float32 parameters and sum gradients in float32;
    inputs are not cast, so call the module under autocast as with ``ddp``. A process alone keeps ``net`` as it is.
    """
    if group.world == 1:
        return net
    if mode == "ddp":
        return DistributedDataParallel(net, gradient_as_bucket_view=True)
    mesh = _mesh(mode, group)
    # Casting inputs would also round the rotary table and the draws that decide the guidance drops.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if dtype == torch.bfloat16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in net.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Or tables and head would stay whole after a validation, and go into the next step as they were in it.
    fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return net


def _mesh(mode: Mode, group: Workers) -> DeviceMesh:
    """All processes in a row, or one row a node."""
    if mode == "fsdp":
        return init_device_mesh(group.device.type, (group.world,), mesh_dim_names=("shard",))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", group.world))
    if group.world % local:
        raise UserError(
            f"parallel hybrid: {group.world} processes are not the same number on every node (here {local}); "
            "start torchrun with one --nproc-per-node everywhere or use fsdp"
        )
    return init_device_mesh(group.device.type, (group.world // local, local), mesh_dim_names=("replicate", "shard"))


def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most ``limit``; the norm before, a scalar on the device.

    The norm is that of the whole network however it is spread over processes, and nothing waits for the device.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


@dataclass(frozen=True)
class Piece:
    """What this process holds of a tensor: ``local`` begins at ``offset`` of the whole, which has ``shape``.

    ``replicas`` processes hold this same piece; this one is number ``replica`` of them.
    """

    local: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    replica: int
    replicas: int


def piece(tensor: Tensor, group: Workers) -> Piece:
    """This process's piece of a DTensor; a plain tensor counts as a whole copy on every process."""
    shape, offset = tuple(tensor.shape), [0] * tensor.dim()
    if not isinstance(tensor, DTensor):
        return Piece(tensor.detach(), tuple(offset), shape, group.rank, group.world)
    replica, replicas, mesh = 0, 1, tensor.device_mesh
    for number, placement in enumerate(tensor.placements):
        index, size = mesh.get_local_rank(number), mesh.size(number)
        if isinstance(placement, Shard):
            length = shape[placement.dim]
            offset[placement.dim] = min(length, index * -(-length // size))  # as torch.chunk cuts
        elif isinstance(placement, Replicate):
            replica, replicas = replica * size + index, replicas * size
        else:
            raise TypeError(f"no piece of a tensor that lies as {placement}")
    return Piece(tensor.to_local().detach(), tuple(offset), shape, replica, replicas)
