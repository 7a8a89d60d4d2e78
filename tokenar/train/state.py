"""The training state as tensors by name, and the safetensors files that hold it, one file a rank.

Names are ``model.<parameter or buffer>``, ``ema.<parameter>`` and ``optimizer.<key>.<parameter>``, where the key is
AdamW's ``exp_avg``, ``exp_avg_sq`` or ``step``. A file holds the shards of one rank. Its header has under "pieces" the
shape of each full tensor and the offset at which the rank's shard begins in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from data_schemas.errors import UserError
from tokenar.processes import Workers
from tokenar.train.parallel import local_shard

_WRAPPERS = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module)\.")
"""Prefixes that torch.compile and activation checkpointing add to the parameter names of the modules they wrap."""
_IMPLEMENTATION = {"foreach", "fused", "capturable"}
"""Optimiser settings that choose an implementation and not the result. They are not saved, so that a run may be resumed
on another device."""


def model_state(net: nn.Module, ema: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Weights, buffers and averages by name: the tensors themselves and not copies, with FSDP as DTensors."""
    averages = {f"ema.{name}": tensor for name, tensor in (ema or {}).items()}
    return {f"model.{name}": tensor for name, tensor in _weights(net).items()} | averages


def optimizer_state(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state tensors by name; empty before its first step."""
    return {
        f"optimizer.{key}.{name}": value
        for name, parameter in _parameters(net, optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def optimizer_facts(net: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser's class name, and the settings and parameter names of each of its groups, as JSON values."""
    names = iter(name for name, _ in _parameters(net, optimizer))
    groups = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key not in _IMPLEMENTATION | {"params"}}
        if isinstance(settings["lr"], Tensor):
            settings["lr"] = settings["lr"].item()
        groups.append({"settings": settings, "parameters": [next(names) for _ in group["params"]]})
    return {"name": type(optimizer).__name__, "groups": groups}


def _weights(net: nn.Module) -> dict[str, Tensor]:
    if isinstance(net, DistributedDataParallel):
        net = net.module
    return {_WRAPPERS.sub("", name): tensor for name, tensor in net.state_dict(keep_vars=True).items()}


def _parameters(net: nn.Module, optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
    """The optimiser's parameters in the order of its groups, with their names in the network."""
    names = {id(tensor): name for name, tensor in _weights(net).items()}
    return [(names[id(parameter)], parameter) for group in optimizer.param_groups for parameter in group["params"]]


def write_rank_file(path: Path, tensors: Mapping[str, Tensor], places: Mapping[str, Any]) -> dict[str, Any]:
    """Write one rank's file and return {"bytes": its size, "sha256": its digest}.

    ``places`` has for each name {"shape": shape of the full tensor, "offset": where the shard begins in it}.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path, metadata={"pieces": json.dumps(places)})
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SavedState:
    """Reads the tensors of one checkpoint from the shards in its files.

    ``path`` is the checkpoint's folder and ``names`` are its files. They are opened once and closed by ``files``. A
    rank reads only the bytes that overlap with the shards it holds now, which may be cut differently.
    """

    def __init__(self, path: Path, names: list[str], files: ExitStack, group: Workers):
        self.path, self.group = path, group
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._saved_shards: dict[str, list[tuple[Any, list[int]]]] = {}  # by name: (open file, offset)
        for name in names:
            file = files.enter_context(safe_open(path / name, framework="pt"))
            for key, place in json.loads(file.metadata()["pieces"]).items():
                self.shapes[key] = tuple(place["shape"])
                self._saved_shards.setdefault(key, []).append((file, place["offset"]))

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Fill the tensors of ``model_state`` in place.

        UserError naming the first tensor whose name or shape differs; nothing is filled then.
        """
        saved = {name for name in self.shapes if not name.startswith("optimizer.")}
        for name in sorted(saved | set(state)):
            before = str(list(self.shapes[name])) if name in saved else "not in it"
            now = str(list(state[name].shape)) if name in state else "not in this model"
            if before != now:
                comparison = now if now.startswith("not") else f"in this model {now}"
                raise UserError(f"{self.path}: {name} is {before}, {comparison}; resume with the run's own settings")
        for name, tensor in state.items():
            self._read(name, tensor)

    def fill_optimizer(self, net: nn.Module, optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
        """Load the optimiser's saved state and the settings in ``saved``, which is a result of ``optimizer_facts``.

        UserError if ``optimizer`` is of another class or has other parameters.
        """
        now = optimizer_facts(net, optimizer)
        if _outline(now) != _outline(saved):
            raise UserError(
                f"{self.path}: made with another optimiser ({_described(saved)}, here {_described(now)}); resume with "
                "the run's own settings"
            )
        keys = sorted({name.split(".")[1] for name in self.shapes if name.startswith("optimizer.")})
        parameters = _parameters(net, optimizer)
        state: dict[int, dict[str, Tensor]] = {}
        for number, (name, parameter) in enumerate(parameters):
            stored = {key: f"optimizer.{key}.{name}" for key in keys if f"optimizer.{key}.{name}" in self.shapes}
            if stored:
                state[number] = {key: self._read(full, self._empty(full, parameter)) for key, full in stored.items()}
        numbers = iter(range(len(parameters)))
        groups = []
        for own, before in zip(optimizer.param_groups, saved["groups"], strict=True):
            settings = {key: tuple(v) if isinstance(v, list) else v for key, v in before["settings"].items()}
            params = [next(numbers) for _ in before["parameters"]]
            groups.append({**own, **settings, "params": params})
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _empty(self, name: str, parameter: Tensor) -> Tensor:
        """A tensor to load optimiser state into: like its parameter (with FSDP sharded like it), or a scalar."""
        if self.shapes[name] == tuple(parameter.shape):
            return torch.zeros_like(parameter, requires_grad=False)
        return torch.zeros(self.shapes[name])

    def _read(self, name: str, target: Tensor) -> Tensor:
        """Fill this rank's shard of ``target`` from the saved shards that overlap with it. Returns ``target``."""
        own = local_shard(target, self.group)
        for file, offset in self._saved_shards[name]:
            if not own.shape:
                own.local.copy_(file.get_tensor(name))
                continue
            length = file.get_slice(name).get_shape()
            begin = [max(a, b) for a, b in zip(own.offset, offset, strict=True)]
            end = [min(a + n, b + m) for a, n, b, m in zip(own.offset, own.local.shape, offset, length, strict=True)]
            if all(a < b for a, b in zip(begin, end, strict=True)):
                in_own = tuple(slice(a - o, b - o) for a, b, o in zip(begin, end, own.offset, strict=True))
                in_saved = tuple(slice(a - o, b - o) for a, b, o in zip(begin, end, offset, strict=True))
                own.local[in_own].copy_(file.get_slice(name)[in_saved])
        return target


def _outline(facts: Mapping[str, Any]) -> tuple[str, list[list[str]]]:
    """What must be the same to resume: the optimiser's class, and the parameters of each group."""
    return facts["name"], [group["parameters"] for group in facts["groups"]]


def _described(facts: Mapping[str, Any]) -> str:
    counts = " + ".join(str(len(group["parameters"])) for group in facts["groups"])
    return f"{facts['name']} of {counts} parameters"
