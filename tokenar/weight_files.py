"""Reading files of weights without running code in them, and checking that all numbers are finite."""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.files import check_file
from data_schemas.io.text import one_line

_CODE = re.compile(r"\bGLOBAL ([A-Za-z_][\w.]*)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ALONE = (
    "if you trust where the file is from, save its weights alone: "
    "torch.save({'model': torch.load(FILE, weights_only=False)['model']}, 'weights.pt')"
)
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""What data parallel training and torch.compile put before every name."""
MAX_PICKLE = 64 << 20
"""Most bytes of a file that are searched for the key of what is refused. Pickles without their tensors are smaller."""
PICKLES = 8
"""Most pickles that are searched; files of torch before 1.6 hold five, one behind the other."""


def read_content(path: str | Path, advice: str) -> Any:
    """The content of a .safetensors file (tensors by name) or of a file that torch.save wrote, on the CPU.

    UserError, ending in ``advice``, if it is neither or holds more than tensors and plain values. A class or
    function in the file is not run; the message names it and the keys under which it stands.
    """
    path = check_file(path, advice)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_packing(path)
        # Published trainers store their command line, an argparse.Namespace. It is as harmless as a dictionary.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other protocols; what cannot be read is told below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or other file raises anything: SafetensorError, EOFError, KeyError
        text = _COLOURS.sub("", str(error))
        if "Weights only load failed" in text and (code := _CODE.search(text)):
            reason, advice = f"it holds code, {code[1]}, which is not run{_place(path, code[1])}", _ALONE
        else:
            reason = _reason(text, error)
        raise UserError(f"{path}: not a readable file of weights ({reason}); {advice}") from error


def _check_packing(path: Path) -> None:
    """ValueError if the file is a zip archive without its end, or one that unpacks to more than its own size, which
    torch.save never writes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")
        return
    with open(path, "rb") as file:
        if file.read(4) == b"PK\3\4":
            raise ValueError("its end is missing")


def _reason(text: str, error: Exception) -> str:
    """A short reason why a file could not be read; torch's own message is a page long."""
    if "Weights only load failed" in text:
        return "it is damaged or holds more than tensors"
    if isinstance(error, EOFError | LookupError | pickle.UnpicklingError):  # their text is a number or an opcode
        return "it is empty, cut short or of another kind"
    lines = text.strip().splitlines()
    return one_line(lines[0], 200) if lines else type(error).__name__


def _place(path: Path, name: str) -> str:
    """The words ", under <keys>" for the class or function ``name`` of a file; nothing if it stands under no key."""
    try:
        keys = next((keys for stream in _pickles(path) if (keys := _keys_of(stream, name)) is not None), [])
    except Exception:  # pickletools raises anything on what is no pickle
        keys = []
    return f", under {one_line('.'.join(keys), 200)}" if keys else ""


def _pickles(path: Path) -> Iterator[io.BytesIO]:
    """The pickles of a file. Of a file of torch before 1.6 the same stream comes again, at its next pickle."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.rpartition("/")[2] == "data.pkl":
                    yield io.BytesIO(archive.open(entry).read(MAX_PICKLE))
        return
    with open(path, "rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE))
    for _ in range(PICKLES):
        yield stream


def _keys_of(stream: io.BytesIO, name: str) -> list[str] | None:
    """The dictionary keys under which a pickle's class or function ``name`` stands, from the outermost; None if it has
    none of that name.

    The pickle is read and not run: the stack holds its texts, and ``dict``, a mark or None for all else.
    """
    stack: list[object] = []
    remembered: dict[object, object] = {}
    mark = pickletools.markobject
    for opcode, argument, _ in pickletools.genops(stream):
        # torch names what is built in without its module
        if opcode.name == "GLOBAL" and str(argument).replace(" ", ".") in (name, f"builtins.{name}"):
            starts = [0, *(i + 1 for i, item in enumerate(stack) if item is mark), len(stack) + 1]
            return [key for start, end in pairwise(starts) for key in _open_keys(stack[start : end - 1])]
        pops = len(opcode.stack_before)
        if mark in opcode.stack_before:
            while stack.pop() is not mark:
                pass
            pops = opcode.stack_before.index(mark)
        kept = stack[-1] if stack else None
        if pops:
            del stack[-pops:]
        if "GET" in opcode.name:
            stack.append(remembered.get(argument))
        elif "PUT" in opcode.name:
            remembered[argument] = kept
        elif isinstance(argument, str) and "UNICODE" in opcode.name:
            stack.append(argument)
        elif opcode.name == "EMPTY_DICT":
            stack.append(dict)
        else:
            stack.extend(mark if item is mark else None for item in opcode.stack_after)
    return None


def _open_keys(part: list[object]) -> list[str]:
    """The keys whose values are not read yet, of a stretch of a pickle's stack: the last of pairs in a row, and those
    that come alone behind their dictionary."""
    texts = [(place, item) for place, item in enumerate(part) if isinstance(item, str)]
    alone = [item for place, item in texts if place and part[place - 1] is dict]
    in_a_row = [item for place, item in texts if place % 2 == 0 and not (place and part[place - 1] is dict)]
    return in_a_row[-1:] + alone


def weights_in(content: Any, path: Path, advice: str, averaged: bool = False) -> dict[str, Tensor]:
    """The weights in the content of a checkpoint file, by name without the prefixes that torch's wrappers add.

    ``averaged`` takes the moving average under "ema" if there is one; what it leaves out, such as tables that are not
    trained, comes from the weights beside it. UserError, ending in ``advice``, naming what cannot be used.
    """
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    names = ("model", "module", "state_dict", "ema")
    parts = {name: found[name] for name in names if isinstance(found.get(name), dict)}
    chosen: dict[Any, Any] = _plain_names(next(iter(parts.values()), found), path)
    if averaged and "ema" in parts:
        average = _plain_names(parts["ema"], path)
        chosen = chosen | average if average.keys() <= chosen.keys() else average
    if not chosen or not all(isinstance(value, Tensor) for value in chosen.values()):
        raise UserError(f"{path}: no weights under {', '.join(map(repr, names))}; {advice}")
    if other := next((name for name in chosen if not isinstance(name, str)), None):
        raise UserError(f"{path}: a tensor is named {one_line(other, 100)}, which is no text; {advice}")
    for name, tensor in chosen.items():
        if problem := _problem(tensor):
            raise UserError(f"{path}: {one_line(name, 200)} {problem}; {advice}")
    check_finite(chosen, path, "give a checkpoint from before the training went wrong")
    return chosen


def _plain_names(weights: Mapping[Any, Any], path: Path) -> dict[Any, Any]:
    plain = {_WRAPPED.sub("", name) if isinstance(name, str) else name: value for name, value in weights.items()}
    if len(plain) < len(weights):
        raise UserError(f"{path}: two tensors have one name without 'module.' and '_orig_mod.'; keep one of them")
    return plain


def _problem(tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight; None if it can."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "is sparse, quantised or without numbers"
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers of 16 to 64 bits"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"is {list(tensor.shape)}, more numbers than the file holds"
    return None


def are_finite(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whether each tensor is free of NaN and infinity: by name, a bool tensor on the tensor's device.

    Integer and empty tensors are left out.
    """
    # Minimum and maximum are NaN if any element is, and no temporary of the tensor's size is needed.
    floats = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}
    return {name: torch.stack(tensor.detach().aminmax()).isfinite().all() for name, tensor in floats.items()}


def check_finite(tensors: Mapping[str, Tensor], source: str | Path, advice: str) -> None:
    """UserError naming the first tensor that has NaN or infinity. The message begins with ``source`` and ends with
    ``advice``."""
    for name, finite in are_finite(tensors).items():
        if not finite:
            raise UserError(f"{source}: {name} holds NaN or infinity; {advice}")
