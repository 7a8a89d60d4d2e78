"""Files of weights: nothing in them is run, and every tensor holds numbers."""

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
    """What a .safetensors file (tensors by name) or a file of torch.save holds, on the CPU.

    UserError, with ``advice``, for what is no such file or holds more than tensors and plain values.
    """
    path = check_file(path, advice)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Published trainers store their command line, a Namespace; it is a dictionary by another name.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or foreign file raises many kinds: SafetensorError, EOFError, KeyError
        raise UserError(f"{path}: not a readable file of weights ({_reason(error)}); {advice}") from error


def _reason(error: Exception) -> str:
    """Why torch refused, in a few plain words; its own are a page in colour."""
    text = _COLOURS.sub("", str(error))
    if "Weights only load failed" in text:
        code = _CODE.search(text)
        return f"it holds code, {code[1]}, which is not run" if code else "it is damaged or holds more than tensors"
    lines = text.strip().splitlines()
    return one_line(lines[0], 200) if lines else type(error).__name__


def are_finite(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name, for each that is not of whole numbers or empty: a bool on its device, no NaN and nothing infinite."""
    # The smallest and the largest are NaN if one is; nothing as large as the tensor is made.
    floats = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}
    return {name: torch.stack(tensor.detach().aminmax()).isfinite().all() for name, tensor in floats.items()}


def check_finite(tensors: Mapping[str, Tensor], source: str | Path, advice: str) -> None:
    """UserError naming the first tensor that holds NaN or infinity; ``source`` and ``advice`` are for its message."""
    for name, finite in are_finite(tensors).items():
        if not finite:
            raise UserError(f"{source}: {name} holds NaN or infinity; {advice}")
