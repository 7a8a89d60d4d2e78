"""How a network is spread over processes.

``ddp`` keeps the whole network on every process. ``fsdp`` keeps a share of every parameter, gradient and optimiser
state on each and brings a block's parameters together while the block runs. ``hybrid`` does so within a node and keeps
a copy on every node, so that only gradients cross the network between them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from data_schemas.errors import UserError
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers

Mode = Literal["ddp", "fsdp", "hybrid"]


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
