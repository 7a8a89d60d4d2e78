"""The matting stage with BEN2: this project's own network, or the published package kept from side effects."""

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
"""A matte whose maximum is below NO_SUBJECT, or whose range is below FLAT, is not stretched."""


class Ben2Config(MattingConfig):
    """Settings of BEN2.

    The published script takes every alpha above 0 for foreground (docs/differences.md, "Threshold of the foreground").
    """

    backend: Literal["ben2"] = Field(
        "ben2", description="`ben2` cuts out the foreground of the whole picture with BEN2, as the paper does"
    )
    source: str = Field(
        "PramaLLC/BEN2",
        description="Hugging Face id, folder with model.safetensors, .safetensors file or the official .pth file",
    )
    revision: str = Field("main", description="Branch, tag or commit of `source` on the hub")
    implementation: Literal["network", "package"] = Field(
        "network", description="`network`: this project's own; `package`: the package ben2, for comparison"
    )
    side: int = Field(
        1024,
        ge=128,
        le=2048,
        multiple_of=128,
        description="Side in pixels of the square that the network sees; it was trained at 1024",
    )
    stretch: bool = Field(
        False, description="Stretch each matte to 0..1 as the package does; a faint matte then looks certain"
    )
    foreground_colours: bool = Field(
        False, description="Estimate the subject's own colours where it is half transparent"
    )
    dilate: int = Field(
        8,
        ge=0,
        le=64,
        description="Pixels by which the background's black hole is enlarged, to cover hair and soft edges",
    )
    precision: Precision | Literal["auto"] = Field(
        "auto", description="Number format of the computation; `auto`: bfloat16 on a GPU, float32 on a CPU"
    )
    device: Device = "auto"
    batch_size: int = Field(4, ge=1, le=256, description="Pictures in a batch on a GPU; a CPU takes one at a time")
    how = frozenset({"device", "batch_size"})


class Ben2(Matting):
    """Mattes of the whole target. The planned boxes are only used for its numbers."""

    Config = Ben2Config

    def __init__(self, config: Ben2Config | None = None):
        super().__init__(config)
        self.batch_size = self.config.batch_size

    def weights(self) -> tuple[Weights, ...]:
        c = self.config
        return (Weights("BEN2", c.source, (ONE_FILE,), c.revision, licence="MIT", gigabytes=0.38, memory=4),)

    def setup(self) -> None:
        from pipeline.matting import ben2_inference, ben2_network  # slow to import and not needed by most commands

        self.device = device_of(self.config.device)
        self.dtype = ben2_inference.precision_of(self.config.precision, self.device)
        ours = self.config.implementation == "network"
        load = ben2_network.load_network if ours else ben2_inference.load_package
        path = locate(self.weights()[0])
        self.network = ben2_inference.one_at_a_time(load(path / ONE_FILE if path.is_dir() else path, self.device))

    def mattes(self, samples: Sequence[Sample], targets: Sequence[Image.Image]) -> list[np.ndarray]:
        from pipeline.matting.ben2_inference import matte

        # on a CPU a batch is no faster and needs more memory
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
    """The matte [H, W] stretched to 0..1, or unchanged if it has no subject or no range.

    The package stretches every matte, so that an empty picture gets a certain one (docs/differences.md, "Stretched
    mattes").
    """
    low, high = float(alpha.min()), float(alpha.max())
    if high < NO_SUBJECT or high - low < FLAT:
        return alpha
    return (alpha - low) / (high - low)


def foreground_colours(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The foreground's own colours, estimated from a picture [H, W, 3] uint8 and its matte [H, W] in 0..1.

    Returns [H, W, 3] uint8. It is blur fusion in two passes, as in the package; the widths, 90 and 6, are in pixels.
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
    """The mean of [H, W, C] over squares of ``width`` pixels, with the picture mirrored at its border."""
    return cv2.blur(pixels, (width, width)).reshape(pixels.shape)
