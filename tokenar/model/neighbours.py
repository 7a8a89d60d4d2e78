"""Tokens read together with their neighbours in the image, so that one attention can find a place by what is around it.

A small causal transformer learns late to look a token up in a reference: its first layer has to gather what lies left
and above before a second one can compare it with the reference. Here the embeddings hold it from the start, with the
same weights for the references and for the picture. PixelCNN's masked convolution (van den Oord et al. 2016,
arXiv 1601.06759) reads the same four neighbours.

Shape legend: B batch, L tokens, m positions, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenar.model.config import ModelConfig
from tokenar.model.linear import Linear

BEFORE = ((0, -1), (-1, -1), (-1, 0), (-1, 1))
"""Rows down and columns right of a token to the neighbours that are drawn before it: left, and the three above."""
AFTER = ((0, 1), (1, -1), (1, 0), (1, 1))
"""The same to the four that are drawn after it."""


def with_border(tokens: Tensor, vocabulary: int) -> Tensor:
    """Codes [B, L] -> [B, L + 1]: behind them stands V, the code of what is beyond an image's border."""
    return torch.nn.functional.pad(tokens, (0, 1), value=vocabulary)


def neighbour_numbers(numbers: Tensor, grid: int, directions: tuple[tuple[int, int], ...], outside: int) -> Tensor:
    """Numbers of the neighbours of tokens ``numbers`` [m] of images that lie one behind the other, [m, directions].

    A neighbour beyond the border of the token's image has the number ``outside``.
    """
    row, column = numbers // grid % grid, numbers % grid
    found = []
    for down, right in directions:
        below, beside = row + down, column + right
        inside = (below >= 0) & (below < grid) & (beside >= 0) & (beside < grid)
        found.append((numbers + down * grid + right).masked_fill(~inside, outside))
    return torch.stack(found, dim=1)


class Neighbours(nn.Module):
    """Sums of the projected embeddings of a token's neighbours. Beyond the border stands a learned vector."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.width
        self.grid, self.vocabulary = config.grid, config.vocabulary
        self.before, self.after = (Linear(4 * width, width, bias=False) for _ in range(2))
        self.border = nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        """Neighbours before a token begin as strong as the token itself, and those after it half as strong."""
        width = len(self.border)
        nn.init.normal_(self.border, std=0.02)
        nn.init.normal_(self.before.weight, std=width**-0.5)
        nn.init.normal_(self.after.weight, std=0.5 * width**-0.5)

    def of_sources(self, tokens: Tensor, embedding: nn.Embedding) -> Tensor:
        """What all eight neighbours add to each of the tokens [B, L] of whole images: [B, L, D]."""
        history, numbers = with_border(tokens, self.vocabulary), torch.arange(tokens.shape[1], device=tokens.device)
        before, after = (self._embedded(history, numbers, where, embedding) for where in (BEFORE, AFTER))
        return self.before(before) + self.after(after)

    def of_targets(self, history: Tensor, numbers: Tensor, embedding: nn.Embedding) -> Tensor:
        """What stands at the positions that predict the target's tokens ``numbers`` [m]: [B, m, D].

        ``history`` [B, L + 1] has the target's tokens as ``with_border`` makes it; only earlier ones are read.
        """
        return self.before(self._embedded(history, numbers, BEFORE, embedding))

    def _embedded(
        self, history: Tensor, numbers: Tensor, directions: tuple[tuple[int, int], ...], embedding: nn.Embedding
    ) -> Tensor:
        """Embeddings of the neighbours side by side, [B, m, 4 D]."""
        chosen = neighbour_numbers(numbers, self.grid, directions, history.shape[1] - 1)
        codes = history.index_select(1, chosen.flatten()).unflatten(1, (-1, len(directions)))
        inside = embedding(codes.clamp_max(self.vocabulary - 1))
        return torch.where((codes < self.vocabulary)[..., None], inside, self.border.type_as(inside)).flatten(2)
