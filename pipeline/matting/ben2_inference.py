"""Running BEN2: from pictures to mattes, and loading the published package without its side effects."""

from __future__ import annotations

import importlib
import inspect
import pickle
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.backends import cudnn

from data_schemas.errors import UserError
from pipeline.core.weights import ONE_FILE
from pipeline.device import Precision, dtype_of, exact_float32

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Network = Callable[[Tensor], Tensor]
"""A function from normalised pictures [B, 3, S, S] to mattes [B, 1, S, S] in 0..1."""


def one_at_a_time(network: Network) -> Network:
    """The network behind a lock, so that parts made at the same time need the memory of one. float32 is exact in it."""
    turn = threading.Lock()

    def waiting(pictures: Tensor) -> Tensor:
        with turn, exact_float32():
            return network(pictures)

    return waiting


def precision_of(name: Precision | Literal["auto"], device: torch.device) -> torch.dtype:
    """The torch dtype of a precision setting. Raises UserError for float16 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UserError("matting.precision: float16 on a CPU takes minutes a picture; set auto, float32 or bfloat16")
    return dtype_of(name)


def matte(
    network: Network, pictures: Sequence[Image.Image], side: int, device: torch.device, dtype: torch.dtype
) -> list[np.ndarray]:
    """The mattes [H, W] float32 in 0..1 of pictures, each of its picture's size, from one batch of the network.

    The caller applies EXIF rotation. The pictures are not changed. A matte is resized once and stays float32.
    """
    batch = torch.stack([prepared(picture, side) for picture in pictures]).to(device)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        masks = network(batch).float().cpu()
    return [fitted(mask, picture.size) for mask, picture in zip(masks, pictures, strict=True)]


def prepared(picture: Image.Image, side: int) -> Tensor:
    """The picture as the network's input: [3, side, side] float32, normalised, with its aspect ratio not kept."""
    scaled = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def fitted(mask: Tensor, size: tuple[int, int], antialias: bool = True) -> np.ndarray:
    """A mask [1, S, S] resized to a matte [H, W] for a picture of ``size`` (width, height).

    The published package resizes without antialiasing.
    """
    alpha = F.interpolate(mask[None], size[::-1], mode="bilinear", align_corners=False, antialias=antialias)
    return alpha[0, 0].clamp(0, 1).numpy()


def load_package(path: Path, device: torch.device) -> Network:
    """The published package's network with the weights at ``path``, kept from changing the state of the process.

    Only its bare ``forward`` is used. ``inference`` would reseed all random streams, change the caller's picture and
    stretch the matte, and forward's decorators would force float16 on a GPU. Raises UserError without the package or
    its weights.
    """
    with untouched(), redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a GPU it warns about its own autocast
        try:
            package: Any = importlib.import_module("ben2")
        except ImportError as error:
            raise UserError(
                f"matting.implementation: the package ben2 cannot be imported ({error}); "
                'pip install "ben2 @ git+https://github.com/PramaLLC/BEN2.git", or set it to network'
            ) from error
        try:
            network = _package_network(package, path).eval().to(device)
        except (KeyError, RuntimeError, ValueError, OSError, pickle.UnpicklingError, safetensors.SafetensorError) as e:
            reason = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
            raise UserError(f"{path}: the package ben2 cannot load it ({reason}); name {ONE_FILE} of BEN2") from e
    forward = inspect.unwrap(type(network).forward)

    def fenced(pictures: Tensor) -> Tensor:
        with untouched():
            return forward(network, pictures)

    return fenced


def _package_network(package: Any, path: Path) -> Any:
    if path.name == ONE_FILE:
        # without strict, any file would be accepted
        return package.BEN_Base.from_pretrained(str(path.parent), strict=True)
    network = package.BEN_Base()
    if path.suffix == ".safetensors":
        network.load_state_dict(safetensors.torch.load_file(path))
    else:
        network.loadcheckpoints(str(path))
    return network


@contextmanager
def untouched() -> Iterator[None]:
    """Restore the random states, cuDNN's flags and the matmul precision when the block ends."""
    python, numbers = random.getstate(), np.random.get_state()
    flags, precision = (cudnn.deterministic, cudnn.benchmark), torch.get_float32_matmul_precision()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
            cudnn.deterministic, cudnn.benchmark = flags
            torch.set_float32_matmul_precision(precision)
