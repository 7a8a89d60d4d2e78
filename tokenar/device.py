"""A process's device, exact float32 on it, deterministic kernels, and random numbers that leave the caller's alone."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable that cuBLAS needs to be deterministic."""


def exact_float32() -> None:
    """Compute float32 products in float32 on a GPU, not in TF32, for the rest of this process.

    By default cuDNN's convolutions use TF32 with 10 bits of mantissa. A VQ tokenizer then gives other codes than on a
    CPU, and FID and DINO are other numbers. The setting is never undone, because encoders run in several threads.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # the old name of the setting below; torch wants them to agree
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # missing in torch's type stubs


def own_device() -> torch.device:
    """This process's current GPU, or the CPU if there is none. Also makes float32 exact (``exact_float32``).

    The GPU has its number: "cuda" alone would be GPU 0 in a thread started later.
    """
    exact_float32()
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """What a person calls the device: the GPU's name, or the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


@contextmanager
def repeatable(deterministic: bool) -> Iterator[None]:
    """Within the block, use deterministic kernels if ``deterministic`` is True; afterwards, restore the old setting.

    Enter the block before the first use of a GPU: cuBLAS reads its environment variable when it starts. An operation
    without a deterministic kernel gives a warning, or an error inside ``strictly_repeatable``.
    """
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def strictly_repeatable() -> Iterator[None]:
    """Within the block, an operation that has no deterministic kernel is an error, if such kernels are asked for.

    Attention needs this. While there would only be a warning, the backward passes of its fused kernels stay
    non-deterministic on a GPU.
    """
    asked, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(asked, warn_only=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warn_only)


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Restore the global random state of the CPU and of ``device`` after the block. That of other GPUs is not kept:
    ``torch.manual_seed`` seeds all of them."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
