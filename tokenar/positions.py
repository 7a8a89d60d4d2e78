"""Where every token sits: the segments of the sequence, the block ids and the rotary table. Pure functions.

The sequence (spec section 1) is

    [reference 0 | ... | reference R-1 | background | text | instruct tokens | target blocks]

Every picture is a block of N = grid x grid tokens in raster order. With identity disentanglement the target blocks
are the R references again and then the picture; without it, only the picture.

A block has a *slot*: reference i has slot i, and the background and the picture have the last slot, number
``max_references``. The slot picks the row of the index table, the rows of the null-image table and the place in the
rotary grid. The released code gives the background the last reference's id (spec QUIRK 1), so that the two cannot be
told apart; here the background has its own. Only real references get a block; nothing is padded with grey pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenar.config import ModelConfig


@dataclass(frozen=True)
class Layout:
    """Lengths in tokens of one sequence with R real references."""

    references: int
    max_references: int
    grid: int
    text_tokens: int
    instruct_tokens: int
    disentangled: bool

    @property
    def image_tokens(self) -> int:
        return self.grid * self.grid

    @property
    def source_slots(self) -> list[int]:
        """Slots of the source blocks, in sequence order."""
        return [*range(self.references), self.max_references]

    @property
    def target_slots(self) -> list[int]:
        """Slots of the target blocks, in sequence order; the picture is the last."""
        return self.source_slots if self.disentangled else [self.max_references]

    @property
    def source_tokens(self) -> int:
        return len(self.source_slots) * self.image_tokens

    @property
    def prefix(self) -> int:
        """Positions before the first target token."""
        return self.source_tokens + self.text_tokens + self.instruct_tokens

    @property
    def target_tokens(self) -> int:
        return len(self.target_slots) * self.image_tokens

    @property
    def total(self) -> int:
        return self.prefix + self.target_tokens


def make_layout(config: ModelConfig, references: int) -> Layout:
    """The layout of sequences with ``references`` real references."""
    if not 1 <= references <= config.max_references:
        raise ValueError(f"{references} references; the model takes 1 to {config.max_references}")
    return Layout(
        references,
        config.max_references,
        config.grid,
        config.text_tokens,
        config.instruct_tokens,
        config.identity_disentanglement,
    )


def source_ids(layout: Layout) -> torch.Tensor:
    """Slot of every source token, [(R+1) N] int64: its row in the index table."""
    return torch.tensor(layout.source_slots).repeat_interleave(layout.image_tokens)


def null_rows(layout: Layout) -> torch.Tensor:
    """Row of the null-image table for every source token, [(R+1) N] int64: slot * N + raster position."""
    raster = torch.arange(layout.image_tokens).repeat(len(layout.source_slots))
    return source_ids(layout) * layout.image_tokens + raster


def grid_coordinates(layout: Layout) -> torch.Tensor:
    """Row and column of every position, [T, 2] int64; (-1, -1) marks text and instruct positions.

    Layout "grid": every picture keeps its own grid, and the grids are stacked by slot: row = slot * grid + r,
    column = c. A reference and its copy in the target sit at the same place, and so do the background and the
    picture, so "the same place in the source" is one fixed offset. The released canvas scans the blocks across
    each other instead (spec QUIRK 4).
    """
    raster = torch.arange(layout.image_tokens)
    rows, columns = raster // layout.grid, raster % layout.grid

    def blocks(slots: list[int]) -> torch.Tensor:
        return torch.cat([torch.stack([rows + slot * layout.grid, columns], dim=1) for slot in slots])

    plain = torch.full((layout.text_tokens + layout.instruct_tokens, 2), -1)
    return torch.cat([blocks(layout.source_slots), plain, blocks(layout.target_slots)])


def rotary_table(coordinates: torch.Tensor, head_width: int, base: float) -> torch.Tensor:
    """Cosine and sine of every position and pair, [T, head_width / 2, 2] float32 (spec section 2).

    The first half of the pairs turns by row * f_k, the second by column * f_k, with
    f_k = base ** (-2k / (head_width / 2)). Text and instruct positions have cos = sin = 0: their queries and keys
    become zero vectors, as in the published weights (spec QUIRK 3).
    """
    pairs = head_width // 4
    frequencies = base ** (-2.0 * torch.arange(pairs, dtype=torch.float64) / (head_width / 2))
    angles = coordinates.double()[:, :, None] * frequencies  # [T, 2, pairs]
    angles = angles.flatten(1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    table[coordinates[:, 0] < 0] = 0.0
    return table.float()


def apply_rotary(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring pairs of ``x`` [B, H, T, head_width] by ``table`` [T, head_width / 2, 2]; in float32."""
    even, odd = x.float()[..., 0::2], x.float()[..., 1::2]
    cos, sin = table[..., 0], table[..., 1]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)
