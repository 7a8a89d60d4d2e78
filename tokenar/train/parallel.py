"""How the network is distributed over processes (ranks).

``ddp`` keeps the whole network on every rank. ``fsdp`` gives every rank a shard of each parameter, gradient and
optimiser state, and gathers a block's parameters while the block runs. ``hybrid`` uses FSDP within each node and
replicates over the nodes, so that only gradients go over the network between nodes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
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
    """Distribute ``net`` and return the module whose forward must be called instead of its own.

    ``net`` must be on ``group.device``, with the same weights on all ranks. Make the optimiser afterwards: ``fsdp`` and
    ``hybrid`` replace the parameters of ``net`` by DTensors, and return ``net`` itself. With bfloat16 they compute with
    bfloat16 copies of float32 parameters and sum gradients in float32. They do not cast inputs, so call the module
    under autocast, as with ``ddp``. A single process without a process group gets ``net`` back
    unchanged.
    """
    if group.world == 1 and not dist.is_initialized():
        return net
    if mode == "ddp":
        module = DistributedDataParallel(net, gradient_as_bucket_view=True)
        # Buffers are null tables, which never change. By default every forward pass would send them to all ranks again.
        module.broadcast_buffers = False  # the argument of this name has another one in torch 2.14
        return module
    mesh = _mesh(mode, group)
    # cast_forward_inputs would also round the rotary table and the random numbers that decide the guidance drops.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if dtype == torch.bfloat16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in net.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # By default the root module stays gathered after a forward pass. After a validation the next training step would
    # then compute with the embeddings and the head as they were before the optimiser's last update.
    fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return net


def _mesh(mode: Mode, group: Workers) -> DeviceMesh:
    """A mesh of one dimension for ``fsdp``, and of (nodes, processes of a node) for ``hybrid``."""
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
    """Scale the gradients so that their norm is at most ``limit``. Returns the norm before, a scalar on the device.

    The norm is taken over all gradients of the whole network, also where ranks hold shards. Does not wait for the
    device.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


@dataclass(frozen=True)
class LocalShard:
    """The part of a tensor that this rank holds.

    ``local`` begins at index ``offset`` of the full tensor, which has ``shape``. ``replicas`` ranks hold the same
    shard, and this rank is number ``replica`` of them.
    """

    local: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    replica: int
    replicas: int


def local_shard(tensor: Tensor, group: Workers) -> LocalShard:
    """This rank's shard of a DTensor. A plain tensor counts as one full copy on every rank."""
    shape, offset = tuple(tensor.shape), [0] * tensor.dim()
    if not isinstance(tensor, DTensor):
        return LocalShard(tensor.detach(), tuple(offset), shape, group.rank, group.world)
    replica, replicas, mesh = 0, 1, tensor.device_mesh
    for number, placement in enumerate(tensor.placements):
        index, size = mesh.get_local_rank(number), mesh.size(number)
        if isinstance(placement, Shard):
            length = shape[placement.dim]
            offset[placement.dim] = min(length, index * -(-length // size))  # FSDP cuts as torch.chunk does
        elif isinstance(placement, Replicate):
            replica, replicas = replica * size + index, replicas * size
        else:
            raise TypeError(f"no local shard of a tensor with placement {placement}")
    return LocalShard(tensor.to_local().detach(), tuple(offset), shape, replica, replicas)
