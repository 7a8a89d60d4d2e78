"""Where a model runs and in which precision."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

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


cudnn: Any = torch.backends.cudnn
matmul: Any = torch.backends.cuda.matmul


class _Exact:
    """How many blocks of ``exact_float32`` are open, and what the settings were before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0
        self.before = ("none", "none", "none", "highest")

    def enter(self) -> None:
        with self.lock:
            self.open += 1
            if self.open > 1:
                return
            precisions = (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision)
            self.before = (*precisions, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            cudnn.allow_tf32 = False  # the old name of the setting must agree with the new one
            cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = matmul.fp32_precision = "ieee"

    def leave(self) -> None:
        with self.lock:
            self.open -= 1
            if self.open:
                return
            conv, rnn, products, old = self.before
            torch.set_float32_matmul_precision(old)
            cudnn.allow_tf32 = conv == "tf32"
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision = conv, rnn, products


_exact = _Exact()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, float32 is float32 on a GPU too; afterwards the caller's settings are as they were.

    By default cuDNN's convolutions round to 10 bits of mantissa (TF32), and a score on a GPU would not be that of a
    CPU. The setting is the whole process's: with parts side by side the last to leave puts it back.
    """
    _exact.enter()
    try:
        yield
    finally:
        _exact.leave()
