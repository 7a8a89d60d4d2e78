"""Image tokenizers: their interface, and a patch codebook that is fitted on a CPU in seconds.

Shape legend: B batch, S side of an image in pixels, N tokens an image, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_json
from data_schemas.io.files import check_file
from data_schemas.io.text import one_line
from tokenar.encoders.config import TokenizerConfig
from tokenar.weight_files import check_finite

MAX_FIT_PATCHES = 200_000
"""A codebook is fitted to at most this many patches."""


class ImageTokenizer(Protocol):
    """The interface of a tokenizer: images of ``image_size`` (S) pixels a side to and from N = grid x grid tokens."""

    image_size: int
    grid: int
    vocabulary: int

    def encode(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, S, S] float in [-1, 1] -> codes [B, N] int64 in raster order."""
        ...

    def decode(self, codes: Tensor, sources: Tensor | None = None) -> Tensor:
        """Codes [B, N] int64 -> images [B, 3, S, S] float in [-1, 1]. A tokenizer may make use of ``sources``
        [B, K, 3, S, S], the images of which they are composed."""
        ...


def picture_tensor(picture: Image.Image, size: int) -> Tensor:
    """An RGB image as [3, size, size] float in [-1, 1].

    It is resized to a square whatever its aspect ratio, with Pillow's bicubic filter, as in the released program.
    """
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def tensor_picture(pixels: Tensor) -> Image.Image:
    """[3, S, S] float in [-1, 1] -> an RGB image; values outside the range are clamped."""
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(scaled.permute(1, 2, 0).numpy())


class PatchCodebook:
    """A tokenizer that replaces every patch of ``patch`` x ``patch`` pixels by the nearest of V patches.

    ``codes`` [V, 3 * patch * patch] float32 in [-1, 1] are the V patches, found with k-means and ordered from dark to
    bright, so that the same data give the same numbers.
    """

    def __init__(self, config: TokenizerConfig, codes: Tensor):
        self.config = config
        self.image_size, self.vocabulary = config.image_size, config.vocabulary
        self.grid = config.image_size // config.patch
        self.codes = codes

    @classmethod
    def fit(cls, config: TokenizerConfig, pictures: Tensor) -> PatchCodebook:
        """Fit a codebook to images [B, 3, S, S]; of more than 200 000 different patches a random choice is used.

        UserError if there are fewer different patches than codes.
        """
        patches = different_patches(config, pictures).numpy()
        if len(patches) > MAX_FIT_PATCHES:
            chosen = np.random.default_rng(config.seed).choice(len(patches), MAX_FIT_PATCHES, replace=False)
            patches = patches[np.sort(chosen)]
        from sklearn.cluster import MiniBatchKMeans  # slow to import, and not needed to encode
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        means = MiniBatchKMeans(config.vocabulary, batch_size=4096, n_init=1, max_iter=8, random_state=config.seed)
        with threadpool_limits(1):  # so that sums do not depend on the number of cores; it is faster, too
            means.fit(patches)
        codes = means.cluster_centers_.astype(np.float32)
        order = np.lexsort((*codes.T[::-1], codes.mean(axis=1).round(4)))
        return cls(config, torch.from_numpy(codes[order]).contiguous())

    def encode(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> codes [B, N] int64."""
        half = (self.codes**2).sum(1) / 2
        return torch.cat(
            [(half - patches_of(part, self.config.patch) @ self.codes.T).argmin(-1) for part in pictures.split(64)]
        )

    def decode(self, codes: Tensor, sources: Tensor | None = None) -> Tensor:
        """Codes [B, N] -> images [B, 3, S, S]. No use is made of ``sources``."""
        patches = self.codes[codes].transpose(1, 2)
        side = self.config.patch
        return torch.nn.functional.fold(patches, (self.image_size, self.image_size), side, stride=side)

    def resized(self, image_size: int) -> PatchCodebook:
        """The same codes for images of another size."""
        return PatchCodebook(self.config.model_copy(update={"image_size": image_size}), self.codes)

    def save(self, path: Path) -> None:
        """Write the codes and the configuration to one safetensors file."""
        save_file({"codes": self.codes}, path, {"patch_codebook": self.config.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> PatchCodebook:
        """Read a file that ``save`` wrote; UserError if it is missing or damaged."""
        check_file(path, advice := "train or copy the model again")
        try:
            with safe_open(path, "pt") as file:
                config = TokenizerConfig.model_validate(parse_json(file.metadata()["patch_codebook"], str(path)))
                codes = file.get_tensor("codes")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a whole tokenizer file ({one_line(error, 200)}); {advice}") from error
        if codes.shape != (config.vocabulary, 3 * config.patch**2) or codes.dtype != torch.float32:
            raise UserError(
                f"{path}: codes of shape {tuple(codes.shape)} do not fit the file's configuration; {advice}"
            )
        check_finite({"codes": codes}, path, advice)
        return cls(config, codes)


def patches_of(pictures: Tensor, side: int) -> Tensor:
    """Images [B, 3, S, S] -> their patches [B, N, 3 * side * side] in raster order."""
    return torch.nn.functional.unfold(pictures, side, stride=side).transpose(1, 2)


def different_patches(config: TokenizerConfig, pictures: Tensor) -> Tensor:
    """Every patch of images [B, 3, S, S] once, [M, 3 * patch * patch], sorted.

    Tokenizers are fitted to these, because else the many plain white and black patches would dominate. UserError if
    there are fewer than codes.
    """
    patches = torch.unique(patches_of(pictures, config.patch).flatten(0, 1), dim=0)
    if len(patches) < config.vocabulary:
        raise UserError(
            f"the pictures hold {len(patches)} different patches, fewer than the vocabulary of "
            f"{config.vocabulary}; give more pictures or set tokenizer.vocabulary lower"
        )
    return patches
