"""Matting with BEN2: this project's network, or the published package behind a fence (spec/ben2.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.core.stage import Sample
from pipeline.core.weights import ONE_FILE, Weights, locate
from pipeline.device import Device, Precision, device_of
from pipeline.matting.matting import Matting, MattingConfig

NO_SUBJECT, FLAT = 0.1, 1e-3
"""A matte whose maximum is below the first, or whose range is below the second, is not stretched."""


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
        return (Weights("BEN2", c.source, (ONE_FILE,), c.revision, licence="MIT", gigabytes=0.38, memory=4),)

    def setup(self) -> None:
        from pipeline.matting import ben2_inference, ben2_network  # slow to import, and few commands matte

        self.device = device_of(self.config.device)
        self.dtype = ben2_inference.precision_of(self.config.precision, self.device)
        ours = self.config.implementation == "network"
        load = ben2_network.load_network if ours else ben2_inference.load_package
        path = locate(self.weights()[0])
        self.network = ben2_inference.one_at_a_time(load(path / ONE_FILE if path.is_dir() else path, self.device))

    def mattes(self, samples: Sequence[Sample], targets: Sequence[Image.Image]) -> list[np.ndarray]:
        from pipeline.matting.ben2_inference import matte

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
