"""The distillation teacher: DINOv2 features of each patch of an image (paper, appendix A, Eq. A2).

Shape legend: B batch, P patches an image, D width of the teacher.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenar.encoders.config import TeacherConfig
from tokenar.encoders.frozen import fingerprint, load_pretrained, transformers

SIDE = 224
"""Side in pixels of the teacher's input."""
SHORTEST_EDGE = 256
"""Length in pixels to which the shorter side of an image is resized before the middle is cut out."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels, which DINOv2's inputs are normalised with."""


def teacher_pixels(pictures: Tensor, whole: bool = False) -> Tensor:
    """Images [B, 3, H, W] float in [-1, 1] -> DINOv2's input [B, 3, 224, 224] float32 on the CPU.

    As published, images are truncated to 8 bits and resized to a shorter side of 256, and the middle 224 x 224 pixels
    are cut out. The student's features cover the whole image, so a student cell and its teacher patch show slightly
    different parts of it (docs/differences.md, "Teacher crop"). With ``whole`` they show the same part: the whole
    image is resized to 224 x 224.
    """
    scaled = (pictures.detach().float().cpu() + 1) / 2
    bytes_ = (scaled * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    resized = np.stack([np.array(_resized(Image.fromarray(pixels), whole)) for pixels in bytes_])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255 - mean) / std


def _resized(picture: Image.Image, whole: bool) -> Image.Image:
    if whole:
        return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    short = min(picture.size)
    width, height = (int(SHORTEST_EDGE * edge / short) for edge in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))


class Teacher:
    """A frozen DINOv2. ``batch`` images are encoded at once.

    ``tokens`` is P (256 for patches of 14 pixels) and ``width`` is D (768 for the base model). UserError if the model
    is not on this machine or is not a DINOv2.
    """

    def __init__(
        self,
        config: TeacherConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        batch: int = 32,
    ):
        network = load_pretrained(
            transformers().Dinov2Model, "distillation teacher", config.model, config.revision, dtype
        )
        self.config, self.device, self.dtype, self.batch = config, torch.device(device), dtype, batch
        self.network = network.to(device)
        self.tokens = (SIDE // network.config.patch_size) ** 2
        self.width = int(network.config.hidden_size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the features depend on: the weights and the part of the image that is shown."""
        return fingerprint(self.network, f"whole={self.config.whole}")

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, H, W] float in [-1, 1] -> features [B, P, D] float32 on the images' device, in raster order.

        The features are the last hidden states after the final norm, without the class token.
        """
        features = []
        for part in pictures.split(self.batch):
            pixels = teacher_pixels(part, self.config.whole).to(self.device, self.dtype)
            features.append(self.network(pixels).last_hidden_state[:, 1:].float())
        return torch.cat(features).to(pictures.device)
