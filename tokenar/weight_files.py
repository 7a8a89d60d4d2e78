"""Reading files of weights without running code in them, and checking that all numbers are finite."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
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


def read_content(path: str | Path, advice: str) -> Any:
    """The content of a .safetensors file (tensors by name) or of a file that torch.save wrote, on the CPU.

    UserError, ending in ``advice``, if it is neither or holds more than tensors and plain values.
    """
    path = check_file(path, advice)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Published trainers store their command line, an argparse.Namespace. It is as harmless as a dictionary.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or other file raises anything: SafetensorError, EOFError, KeyError
        raise UserError(f"{path}: not a readable file of weights ({_reason(error)}); {advice}") from error


def _reason(error: Exception) -> str:
    """A short reason why a file could not be read; torch's own message is a page long and coloured."""
    text = _COLOURS.sub("", str(error))
    if "Weights only load failed" in text:
        code = _CODE.search(text)
        return f"it holds code, {code[1]}, which is not run" if code else "it is damaged or holds more than tensors"
    lines = text.strip().splitlines()
    return one_line(lines[0], 200) if lines else type(error).__name__


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
