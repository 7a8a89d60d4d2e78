"""The device that a process computes on, what float32 means there, and kernels that give the same bits every time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def exact_float32() -> None:
    """Let float32 be float32 on a GPU, for this process from now on.

    By default cuDNN's convolutions round to 10 bits of mantissa (TF32): a VQ tokenizer then gives other codes than on
    a CPU, and FID and DINO other figures. Set once and never back: encoders run in several threads.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # what torch reads by its old name must agree with the new one
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # put there when torch is imported


def own_device() -> torch.device:
    """This process's GPU, or the CPU; float32 is exact there."""
    exact_float32()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def repeatable(deterministic: bool) -> Iterator[None]:
    """Deterministic kernels if asked for, and as before when the block ends.

    Enter it before anything is on a GPU: cuBLAS reads its setting when it starts.
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
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """The caller's global random numbers are untouched by the block; of other GPUs nothing is asked."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
