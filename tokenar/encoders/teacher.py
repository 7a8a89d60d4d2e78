"""The distillation teachers: features of each patch of an image by DINOv2 (paper, appendix A, Eq. A2), CLIP, or both.

Shape legend: B batch, P patches an image, D width of the teacher.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data_schemas.errors import UserError
from tokenar.encoders.config import TeacherConfig
from tokenar.encoders.frozen import fingerprint, load_pretrained, transformers

SIDE = 224
"""Side in pixels of the teacher's input."""
SHORTEST_EDGE = {"dinov2": 256, "clip": SIDE}
"""Length in pixels to which the shorter side of an image is resized before the middle is cut out."""
MEAN_STD = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation with which each teacher's inputs are normalised: those of its published processor."""


def teacher_pixels(pictures: Tensor, whole: bool = False, kind: str = "dinov2") -> Tensor:
    """Images [B, 3, H, W] float in [-1, 1] -> a teacher's input [B, 3, 224, 224] float32 on the CPU.

    As published, images are truncated to 8 bits and resized to a shorter side of 256 for DINOv2 and of 224 for CLIP,
    and the middle 224 x 224 pixels are cut out. The student's features cover the whole image, so a student cell and its
    patch of DINOv2 show slightly different parts of it (docs/differences.md, "Teacher crop"). With ``whole`` they show
    the same part: the whole image is resized to 224 x 224.
    """
    scaled = (pictures.detach().float().cpu() + 1) / 2
    bytes_ = (scaled * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    resized = np.stack([np.array(_resized(Image.fromarray(pixels), whole, SHORTEST_EDGE[kind])) for pixels in bytes_])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD[kind])
    return (torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255 - mean) / std


def _resized(picture: Image.Image, whole: bool, shortest: int) -> Image.Image:
    if whole:
        return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    short = min(picture.size)
    width, height = (int(shortest * edge / short) for edge in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))


@dataclass(frozen=True)
class _Network:
    """A frozen vision transformer, and how the images are prepared for it."""

    vision: nn.Module
    kind: str
    tokens: int
    width: int


def _loaded(config: TeacherConfig, kind: str, dtype: torch.dtype) -> _Network:
    """A teacher's network. The hidden states of a CLIP are those before its last norm, as published."""
    if kind == "dinov2":
        vision = load_pretrained(
            transformers().Dinov2Model, "distillation teacher", config.model, config.revision, dtype
        )
    else:
        vision = load_pretrained(
            transformers().CLIPVisionModel, "distillation teacher", config.clip, config.clip_revision, dtype
        )
    side = SIDE // vision.config.patch_size
    return _Network(vision, kind, side**2, int(vision.config.hidden_size))


class Teacher:
    """One or two frozen networks. ``batch`` images are encoded at once.

    ``tokens`` is P (256 for DINOv2's patches of 14 pixels, 196 for CLIP's of 16, 452 for both) and ``width`` is D (768
    for the base models). UserError if a model is not on this machine, is another one, or the two differ in width.
    """

    def __init__(
        self,
        config: TeacherConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        batch: int = 32,
    ):
        self.config, self.device, self.dtype, self.batch = config, torch.device(device), dtype, batch
        kinds = ("dinov2", "clip") if config.kind == "both" else (config.kind,)
        self.networks = [_loaded(config, kind, dtype) for kind in kinds]
        for network in self.networks:
            network.vision.to(device)
        self.tokens, self.width = sum(n.tokens for n in self.networks), self.networks[0].width
        if any(network.width != self.width for network in self.networks):
            widths = " and ".join(str(network.width) for network in self.networks)
            raise UserError(f"distillation teachers of widths {widths}; give two of one width")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the features depend on: the weights and the part of the image that is shown."""
        each = [
            fingerprint(n.vision, f"whole={self.config.whole}" if n.kind == "dinov2" else n.kind) for n in self.networks
        ]
        return each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, H, W] float in [-1, 1] -> features [B, P, D] float32 on the images' device, in raster order;
        DINOv2's before CLIP's.

        The features are the last hidden states (DINOv2's after its final norm) without the class token.
        """
        features = []
        for part in pictures.split(self.batch):
            each = []
            for network in self.networks:
                whole = self.config.whole and network.kind == "dinov2"
                pixels = teacher_pixels(part, whole, network.kind).to(self.device, self.dtype)
                each.append(network.vision(pixels).last_hidden_state[:, 1:].float())
            features.append(torch.cat(each, dim=1))
        return torch.cat(features).to(pictures.device)
