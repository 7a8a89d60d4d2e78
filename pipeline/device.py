"""Where a model runs and in which precision."""

from __future__ import annotations

from typing import Literal

import torch

from data_schemas.errors import UserError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16", "float16"]


def device_of(name: Device) -> torch.device:
    """The device a config names; "auto" is the GPU if there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but no GPU is to be seen; set device to auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def dtype_of(name: Precision) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
