"""Where a model runs and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from data_schemas.errors import UserError

if TYPE_CHECKING:  # slow to import: only a stage at work needs it
    import torch

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16", "float16"]


def device_of(name: Device) -> torch.device:
    """The device a config names; "auto" is the GPU if there is one."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but no GPU is to be seen; set device to auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def dtype_of(name: Precision) -> torch.dtype:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
