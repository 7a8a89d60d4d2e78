"""Compiling the block of a decoding step, for all layers and all lengths that it reads, and where it is recorded."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import count
from types import FunctionType
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")
_copies = count()


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled without graph breaks.

    It is compiled from a copy with its own code object and name. torch.compile counts recompilations by code object,
    and every Decoder compiles its step anew: if they shared one code object, the limit would be reached after a few
    shapes. It also remembers per name which sizes changed between calls, and then compiles for any size. Compiling then
    takes ten times as long. With its own name, only this decoder's read length varies.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_copies)}")
    return cast("Callable[P, R]", torch.compile(FunctionType(code, function.__globals__), fullgraph=True))


def varying(source: str | None) -> AbstractContextManager[object]:
    """Within the block, torch.compile takes the integer that it calls ``source`` for one that will change.

    It would otherwise compile for the first value, which serves a few steps alone, and again when the value changes.
    """
    if source is None:
        return nullcontext()
    patch = torch.compiler.config.patch  # type: ignore[attr-defined]  # missing in torch's type stubs
    return cast("AbstractContextManager[object]", patch(dynamic_sources=f"{re.escape(source)}$"))


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which this GPU's steps are recorded.

    torch's own is on the GPU that recorded first in this process. There is one for each GPU and not for each decoder,
    because cuBLAS keeps memory for every stream that it was used on.
    """
    return torch.cuda.Stream(device)
