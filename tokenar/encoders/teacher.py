"""The distillation teacher: what DINOv2 says of each patch of a picture; spec/tokenar.md section 4.

B batch, P patches a picture, D width of the teacher.
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
SHORTEST_EDGE = 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, channel by channel."""


def teacher_pixels(pictures: Tensor, whole: bool = False) -> Tensor:
    """[B, 3, H, W] float in [-1, 1] -> [B, 3, 224, 224] float32 as DINOv2 reads them, on the CPU.

    As published: 8 bits by truncation, the shortest edge resized to 256, the middle 224 x 224 cut out. The student's
    features cover the whole picture, so that its cells and the teacher's patches do not show the same content
    (QUIRK 6); with ``whole`` they do: the whole picture is resized to 224 x 224.
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
    """A frozen DINOv2; UserError if the model is not on this machine or is not a DINOv2.

    ``tokens`` is P (256 for patches of 14 pixels) and ``width`` is D (768 for the base model).
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
        """SHA-256 of all that decides the features: the weights and what is shown to them."""
        return fingerprint(self.network, f"whole={self.config.whole}")

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] float in [-1, 1] -> [B, P, D] float32, where the pictures are; patches in raster order.

        The last hidden states after the final norm, without the class token.
        """
        found = []
        for part in pictures.split(self.batch):
            pixels = teacher_pixels(part, self.config.whole).to(self.device, self.dtype)
            found.append(self.network(pixels).last_hidden_state[:, 1:].float())
        return torch.cat(found).to(pictures.device)
