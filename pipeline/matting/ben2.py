"""Matting with BEN2: this project's network, or the published package behind a fence (spec/ben2.md)."""

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

import cv2
import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.backends import cudnn

from data_schemas.errors import UserError
from pipeline import models
from pipeline.device import Device, Precision, device_of, dtype_of, exact_float32
from pipeline.matting.matting import Matting, MattingConfig
from pipeline.models import Weights
from pipeline.stage import Sample

FILE = "model.safetensors"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NO_SUBJECT, FLAT = 0.1, 1e-3
"""A matte whose maximum is below the first, or whose range is below the second, is not stretched."""

Network = Callable[[Tensor], Tensor]
"""Normalised pictures [B, 3, S, S] -> mattes [B, 1, S, S] in 0..1."""


class Ben2Config(MattingConfig):
    """``source``: a Hugging Face id, a folder with model.safetensors, or a .safetensors or official .pth file.

    ``implementation``: this project's network, or the package ``ben2`` as a cross-check. ``side``: pixels at which
    the network sees a picture; it was trained at 1024. ``stretch`` spreads each matte over 0..1 as the package does:
    off, because it makes a faint matte look sure. ``foreground_colours`` estimates the subject's own colours where it
    is half transparent. ``precision`` auto is bfloat16 on a GPU and float32 on a CPU.

    ``alpha_threshold`` is half: the published script cuts at alpha > 0, so the faintest haze takes scene out of the
    background (spec/curation.md); hair and edges fainter than half are within ``dilate`` of the cut.
    """

    backend: Literal["ben2"] = "ben2"
    source: str = "PramaLLC/BEN2"
    revision: str = "main"
    implementation: Literal["network", "package"] = "network"
    side: int = Field(1024, ge=128, le=2048, multiple_of=128)
    stretch: bool = False
    foreground_colours: bool = False
    dilate: int = Field(8, ge=0, le=64)
    precision: Precision | Literal["auto"] = "auto"
    device: Device = "auto"
    batch_size: int = Field(4, ge=1, le=256)
    how = frozenset({"device", "batch_size"})


class Ben2(Matting):
    """Alpha of the target as a whole; the planned boxes only enter its numbers."""

    Config = Ben2Config

    def __init__(self, config: Ben2Config | None = None):
        super().__init__(config)
        self.batch_size = self.config.batch_size

    def weights(self) -> tuple[Weights, ...]:
        c = self.config
        return (Weights("BEN2", c.source, (FILE,), c.revision, licence="MIT", gigabytes=0.38, memory=4),)

    def setup(self) -> None:
        self.device = device_of(self.config.device)
        self.dtype = precision_of(self.config.precision, self.device)
        from pipeline.matting.ben2_network import load_network  # timm takes a second, and few commands matte

        load = load_network if self.config.implementation == "network" else load_package
        path = models.locate(self.weights()[0])
        self.network = one_at_a_time(load(path / FILE if path.is_dir() else path, self.device))

    def mattes(self, samples: Sequence[Sample], targets: Sequence[Image.Image]) -> list[np.ndarray]:
        # on a CPU a batch is no faster, and takes its memory
        size = len(targets) if self.device.type == "cuda" else 1
        alphas: list[np.ndarray] = []
        for k in range(0, len(targets), size):
            alphas += matte(self.network, targets[k : k + size], self.config.side, self.device, self.dtype)
        return [stretched(alpha) for alpha in alphas] if self.config.stretch else alphas

    def colours(self, target: Image.Image, alpha: np.ndarray) -> Image.Image:
        if not self.config.foreground_colours:
            return target
        return Image.fromarray(foreground_colours(np.asarray(target), alpha))


def one_at_a_time(network: Network) -> Network:
    """The network behind a lock: parts made side by side then need the memory of one. Its float32 is exact."""
    turn = threading.Lock()

    def waiting(pictures: Tensor) -> Tensor:
        with turn, exact_float32():
            return network(pictures)

    return waiting


def precision_of(name: Precision | Literal["auto"], device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UserError("matting.precision: float16 on a CPU takes minutes a picture; set auto, float32 or bfloat16")
    return dtype_of(name)


def matte(
    network: Network, pictures: Sequence[Image.Image], side: int, device: torch.device, dtype: torch.dtype
) -> list[np.ndarray]:
    """Alpha [H, W] float32 in 0..1 of each picture, of its own size, from one batch of the network.

    EXIF rotation is the caller's. The pictures are not changed. The mask stays float and is resized once.
    """
    batch = torch.stack([prepared(picture, side) for picture in pictures]).to(device)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        masks = network(batch).float().cpu()
    return [fitted(mask, picture.size) for mask, picture in zip(masks, pictures, strict=True)]


def prepared(picture: Image.Image, side: int) -> Tensor:
    """The picture as the network takes it: [3, side, side] float32, normalised; its aspect is not kept."""
    scaled = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def fitted(mask: Tensor, size: tuple[int, int], antialias: bool = True) -> np.ndarray:
    """A mask [1, S, S] as alpha [H, W] for a picture of ``size`` (width, height); the package does not antialias."""
    alpha = F.interpolate(mask[None], size[::-1], mode="bilinear", align_corners=False, antialias=antialias)
    return alpha[0, 0].clamp(0, 1).numpy()


def stretched(alpha: np.ndarray) -> np.ndarray:
    """Alpha [H, W] spread over 0..1; as it is where there is no subject, or nothing to spread.

    The package stretches any matte, so that an empty picture gets a confident one (spec section 3).
    """
    low, high = float(alpha.min()), float(alpha.max())
    if high < NO_SUBJECT or high - low < FLAT:
        return alpha
    return (alpha - low) / (high - low)


def foreground_colours(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The foreground's own colours [H, W, 3] uint8 of a picture [H, W, 3] uint8 and its matte [H, W] in 0..1.

    Blur fusion in two passes, a wide one and a narrow one (spec section 5); the widths are in pixels.
    """
    picture, a = pixels.astype(np.float32) / 255, alpha.astype(np.float32)[..., None]
    foreground = background = picture
    for width in (90, 6):
        share = box_blur(a, width)
        near = box_blur(foreground * a, width) / (share + 1e-5)
        far = box_blur(background * (1 - a), width) / (1 - share + 1e-5)
        foreground = (near + a * (picture - a * near - (1 - a) * far)).clip(0, 1)
        background = far
    return (foreground * 255).round().astype(np.uint8)


def box_blur(pixels: np.ndarray, width: int) -> np.ndarray:
    """Mean of [H, W, C] over squares of ``width`` pixels, mirrored at the border."""
    return cv2.blur(pixels, (width, width)).reshape(pixels.shape)


def load_package(path: Path, device: torch.device) -> Network:
    """The published package's network on the weights at ``path``, kept from changing anything around it.

    Only its bare ``forward`` is used: ``inference`` reseeds every random stream, changes the caller's picture and
    stretches the matte, and forward's decorators force float16 on a GPU (spec sections 3 and 8).
    """
    with untouched(), redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a GPU it complains about its own autocast
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
            raise UserError(f"{path}: the package ben2 cannot load it ({reason}); name {FILE} of BEN2") from e
    forward = inspect.unwrap(type(network).forward)

    def fenced(pictures: Tensor) -> Tensor:
        with untouched():
            return forward(network, pictures)

    return fenced


def _package_network(package: Any, path: Path) -> Any:
    if path.name == FILE:
        return package.BEN_Base.from_pretrained(str(path.parent), strict=True)  # not strict, any file would do
    network = package.BEN_Base()
    if path.suffix == ".safetensors":
        network.load_state_dict(safetensors.torch.load_file(path))
    else:
        network.loadcheckpoints(str(path))
    return network


@contextmanager
def untouched() -> Iterator[None]:
    """Whatever happens inside: the random streams, cuDNN's flags and the matmul precision are as before."""
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
