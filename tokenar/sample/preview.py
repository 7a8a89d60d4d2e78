"""A preview of a picture while it is drawn: in a file, and in a terminal that shows colours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_schemas.io.files import write_atomically
from tokenar.encoders.patches import ImageTokenizer, tensor_picture

COLUMNS = 64
"""Width in characters of the preview in a terminal."""


class Preview:
    """Shows the first picture of a batch after every row of tokens: writes it to ``file``, and prints it if standard
    error is a terminal, over the one before."""

    def __init__(self, tokenizer: ImageTokenizer, file: Path):
        self.tokenizer, self.file = tokenizer, file
        self.lines = 0

    def show(self, drawn: Sequence[Tensor], sources: Tensor) -> None:
        """Show the tokens drawn so far, each [rows of the batch]. Tokens that are still missing appear grey.

        ``sources`` [R+1, 3, S, S] are the images of which the first picture is composed.
        """
        grid = self.tokenizer.grid
        if not drawn or len(drawn) % grid:
            return
        codes = torch.stack([token[0] for token in drawn]).cpu()
        whole = torch.nn.functional.pad(codes, (0, grid * grid - len(codes)))
        pixels = self.tokenizer.decode(whole[None], sources[None])[0].cpu()
        pixels[:, len(codes) // grid * (pixels.shape[1] // grid) :] = 0
        picture = tensor_picture(pixels)
        write_atomically(self.file, lambda path: picture.save(path, "PNG"))
        if sys.stderr.isatty():
            up = f"\x1b[{self.lines}A" if len(drawn) > grid and self.lines else ""
            sys.stderr.write(up + "".join(f"\x1b[2K{line}\n" for line in half_blocks(picture)))
            self.lines = COLUMNS // 2


def half_blocks(picture: Image.Image) -> list[str]:
    """A square picture as lines of coloured text. Each character shows two pixels, one above the other."""
    pixels = np.asarray(picture.convert("RGB").resize((COLUMNS, COLUMNS)))
    colour = [[";".join(map(str, pixel)) for pixel in row] for row in pixels]
    pairs = zip(colour[::2], colour[1::2], strict=True)
    return ["".join(f"\x1b[38;2;{a};48;2;{b}m▀" for a, b in zip(*pair, strict=True)) + "\x1b[0m" for pair in pairs]
