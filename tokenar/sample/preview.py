"""Pictures while they are drawn, and a preview of the first: in a file, and in a terminal that shows colours."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_schemas.io.files import write_atomically
from tokenar.encoders.patches import ImageTokenizer, tensor_picture

COLUMNS = 64
"""Width in characters of the preview in a terminal."""


@dataclass
class Growing:
    """The pictures of a batch while they are drawn: ``tokens`` so far, each [rows of the batch], and the share of the
    work that is ``done``. ``sources`` [rows, R+1, 3, S, S] are the images of which the pictures are composed."""

    tokenizer: ImageTokenizer
    sources: Tensor
    tokens: list[Tensor] = field(default_factory=list)
    done: float = 0.0

    @property
    def new_row(self) -> bool:
        """Whether a row of tokens has just become whole."""
        return bool(self.tokens) and len(self.tokens) % self.tokenizer.grid == 0

    def pictures(self, limit: int | None = None) -> list[Image.Image]:
        """The first pictures of the batch, or all. Rows of tokens that are not whole yet are grey.

        Each is decoded alone, because a convolution's last digits depend on the size of the batch.
        """
        grid = self.tokenizer.grid
        codes = torch.stack(self.tokens, dim=1)[:limit].cpu()
        whole = torch.nn.functional.pad(codes, (0, grid * grid - codes.shape[1]))
        alone = zip(whole.split(1), self.sources[:limit].split(1), strict=True)
        pixels = torch.cat([self.tokenizer.decode(*one).cpu() for one in alone])
        pixels[:, :, codes.shape[1] // grid * (pixels.shape[2] // grid) :] = 0
        return [tensor_picture(picture) for picture in pixels]


class Preview:
    """Shows the first picture of a batch after every row of tokens: writes it to ``file``, and prints it if standard
    error is a terminal, over the one before."""

    def __init__(self, file: Path):
        self.file = file
        self.lines = 0

    def show(self, growing: Growing) -> None:
        """Show the first picture as far as it is drawn."""
        if not growing.new_row:
            return
        (picture,) = growing.pictures(1)
        write_atomically(self.file, lambda path: picture.save(path, "PNG"))
        if sys.stderr.isatty():
            up = f"\x1b[{self.lines}A" if self.lines and len(growing.tokens) > growing.tokenizer.grid else ""
            sys.stderr.write(up + "".join(f"\x1b[2K{line}\n" for line in half_blocks(picture)))
            self.lines = COLUMNS // 2


def half_blocks(picture: Image.Image) -> list[str]:
    """A square picture as lines of coloured text. Each character shows two pixels, one above the other."""
    pixels = np.asarray(picture.convert("RGB").resize((COLUMNS, COLUMNS)))
    colour = [[";".join(map(str, pixel)) for pixel in row] for row in pixels]
    pairs = zip(colour[::2], colour[1::2], strict=True)
    return ["".join(f"\x1b[38;2;{a};48;2;{b}m▀" for a, b in zip(*pair, strict=True)) + "\x1b[0m" for pair in pairs]
