"""The device and the floating-point precision that a model runs with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from data_schemas.errors import UserError

if TYPE_CHECKING:  # slow to import, so only running stages do
    import torch

Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    Field(description="Where the model runs; `auto`: on the process's GPU if there is one, else on the CPU"),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"],
    Field(description="Number format of weights and computation; float32 takes twice the memory of the others"),
]


def device_of(name: Device) -> torch.device:
    """The torch device for a setting; "auto" is the process's current GPU if there is one.

    The GPU has its number: "cuda" alone would be GPU 0 in the threads that run a stage. Raises UserError if CUDA is
    asked for in vain.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but no GPU is to be seen; set device to auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def dtype_of(name: Precision) -> torch.dtype:
    """The torch dtype of a precision setting."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


class _Exact:
    """Counts the open blocks of ``exact_float32`` and remembers torch's settings from before the first one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0
        self.before = ("none", "none", "none", "highest")

    def enter(self) -> None:
        """Turn TF32 off if this is the first open block."""
        import torch

        cudnn, matmul = _precisions()
        with self.lock:
            self.open += 1
            if self.open > 1:
                return
            precisions = (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision)
            self.before = (*precisions, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            cudnn.allow_tf32 = False  # torch requires the old setting to agree with the new ones
            cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = matmul.fp32_precision = "ieee"

    def leave(self) -> None:
        """Restore torch's settings if this was the last open block."""
        import torch

        cudnn, matmul = _precisions()
        with self.lock:
            self.open -= 1
            if self.open:
                return
            conv, rnn, products, old = self.before
            torch.set_float32_matmul_precision(old)
            cudnn.allow_tf32 = conv == "tf32"
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision = conv, rnn, products


def _precisions() -> tuple[Any, Any]:
    """torch's two objects with precision settings: cuDNN's and that of matrix products."""
    import torch

    return torch.backends.cudnn, torch.backends.cuda.matmul


_exact = _Exact()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Run the block with full float32 precision on GPUs too, then restore the caller's settings.

    By default cuDNN's convolutions round to 10 bits of mantissa (TF32), so a GPU's scores would differ from a CPU's.
    The settings belong to the process: if blocks overlap in several threads, the last one to end restores them.
    """
    _exact.enter()
    try:
        yield
    finally:
        _exact.leave()
