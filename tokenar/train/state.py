"""The state of a training by name, and the files that hold it in pieces.

Names: ``model.<parameter or buffer>``, ``ema.<parameter>``, ``optimizer.<exp_avg and so on>.<parameter>``. A file holds
the pieces of one process; its header says under "pieces" how large each whole tensor is and where the piece begins.
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
from tokenar.train.parallel import piece

_WRAPPERS = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module)\.")
"""What compiling and activation checkpointing put into the names of what they wrap."""
_IMPLEMENTATION = {"foreach", "fused", "capturable"}
"""Settings of an optimiser that say how and not what it computes; the program's own stand when it resumes."""


def model_state(net: nn.Module, ema: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Weights, buffers and averages by name: the tensors themselves, and with FSDP this process's share of them."""
    averages = {f"ema.{name}": tensor for name, tensor in (ema or {}).items()}
    return {f"model.{name}": tensor for name, tensor in _weights(net).items()} | averages


def optimizer_state(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers, by name; empty before its first step."""
    return {
        f"optimizer.{key}.{name}": value
        for name, parameter in _parameters(net, optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def optimizer_facts(net: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser's name, and of each group its settings and the names of its parameters; fit for JSON."""
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
    """The optimiser's parameters in its order, with their names in the network."""
    names = {id(tensor): name for name, tensor in _weights(net).items()}
    return [(names[id(parameter)], parameter) for group in optimizer.param_groups for parameter in group["params"]]


def write_pieces(path: Path, tensors: Mapping[str, Tensor], places: Mapping[str, Any]) -> dict[str, Any]:
    """Write one process's file and return its size and digest: {"bytes", "sha256"}.

    ``places`` is {name: {"shape": of the whole tensor, "offset": of the piece}}.
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
    """The tensors of one checkpoint, put together from the pieces in its files.

    ``path`` is for messages. Files are opened once and stay open in ``files``; of a file only what is asked for is
    read.
    """

    def __init__(self, path: Path, names: list[str], files: ExitStack, group: Workers):
        self.path, self.group = path, group
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[tuple[Any, list[int]]]] = {}
        for name in names:
            file = files.enter_context(safe_open(path / name, framework="pt"))
            for key, place in json.loads(file.metadata()["pieces"]).items():
                self.shapes[key] = tuple(place["shape"])
                self._pieces.setdefault(key, []).append((file, place["offset"]))

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Fill what ``model_state`` gave, in place. UserError naming the first tensor that differs, before any is."""
        there = {name for name in self.shapes if not name.startswith("optimizer.")}
        for name in sorted(there | set(state)):
            before = str(list(self.shapes[name])) if name in there else "not in it"
            now = str(list(state[name].shape)) if name in state else "not in this model"
            if before != now:
                comparison = now if now.startswith("not") else f"in this model {now}"
                raise UserError(f"{self.path}: {name} is {before}, {comparison}; resume with the run's own settings")
        for name, tensor in state.items():
            self._read(name, tensor)

    def fill_optimizer(self, net: nn.Module, optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
        """Give the optimiser its state and the settings of ``optimizer_facts`` back. UserError if it is another."""
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
            held = {key: f"optimizer.{key}.{name}" for key in keys if f"optimizer.{key}.{name}" in self.shapes}
            if held:
                state[number] = {key: self._read(full, self._room(full, parameter)) for key, full in held.items()}
        numbers = iter(range(len(parameters)))
        groups = []
        for own, before in zip(optimizer.param_groups, saved["groups"], strict=True):
            settings = {key: tuple(v) if isinstance(v, list) else v for key, v in before["settings"].items()}
            params = [next(numbers) for _ in before["parameters"]]
            groups.append({**own, **settings, "params": params})
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _room(self, name: str, parameter: Tensor) -> Tensor:
        """Where a parameter's saved state goes: spread like the parameter, or a number beside it."""
        if self.shapes[name] == tuple(parameter.shape):
            return torch.zeros_like(parameter, requires_grad=False)
        return torch.zeros(self.shapes[name])

    def _read(self, name: str, target: Tensor) -> Tensor:
        """Fill what this process holds of ``target`` from the pieces that overlap with it."""
        own = piece(target, self.group)
        for file, offset in self._pieces[name]:
            if not own.shape:
                own.local.copy_(file.get_tensor(name))
                continue
            length = file.get_slice(name).get_shape()
            begin = [max(a, b) for a, b in zip(own.offset, offset, strict=True)]
            end = [min(a + n, b + m) for a, n, b, m in zip(own.offset, own.local.shape, offset, length, strict=True)]
            if all(a < b for a, b in zip(begin, end, strict=True)):
                here = tuple(slice(a - o, b - o) for a, b, o in zip(begin, end, own.offset, strict=True))
                there = tuple(slice(a - o, b - o) for a, b, o in zip(begin, end, offset, strict=True))
                own.local[here].copy_(file.get_slice(name)[there])
        return target


def _outline(facts: Mapping[str, Any]) -> tuple[str, list[list[str]]]:
    """What must agree: the kind of optimiser and which parameters are in which group."""
    return facts["name"], [group["parameters"] for group in facts["groups"]]


def _described(facts: Mapping[str, Any]) -> str:
    counts = " + ".join(str(len(group["parameters"])) for group in facts["groups"])
    return f"{facts['name']} of {counts} parameters"
