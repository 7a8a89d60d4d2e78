"""Where every token sits: the segments of the sequence, the block ids, the rotary table, the attention mask. Pure.

The sequence (spec/tokenar.md section 1) is

    [reference 0 | ... | reference R-1 | background | text | instruct tokens | target blocks]

Every picture is a block of N = grid x grid tokens in raster order. With identity disentanglement the target blocks
are the R references again and then the picture; without it, only the picture.

A block has a *slot*: reference i has slot i, and the background and the picture have the last slot, number
``max_references``. The slot picks the rows of the null-image table and the place in the rotary layout, and, but for
``background_index="last_reference"``, the row of the index table. Only real references get a block; nothing is padded
with grey pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_schemas.errors import UserError
from tokenar.model.config import ModelConfig


@dataclass(frozen=True)
class Layout:
    """Lengths in tokens of one sequence with R real references."""

    config: ModelConfig
    references: int

    @property
    def image_tokens(self) -> int:
        return self.config.image_tokens

    @property
    def source_slots(self) -> list[int]:
        """Slots of the source blocks, in sequence order."""
        background = [self.config.max_references] if self.config.background else []
        return [*range(self.references), *background]

    @property
    def copies(self) -> int:
        """Reference blocks that are predicted before the picture."""
        return self.references if self.config.identity_disentanglement else 0

    @property
    def target_slots(self) -> list[int]:
        """Slots of the target blocks, in sequence order; the picture is the last."""
        return [*range(self.copies), self.config.max_references]

    @property
    def source_tokens(self) -> int:
        return len(self.source_slots) * self.image_tokens

    @property
    def prefix(self) -> int:
        """Positions before the first target token."""
        return self.source_tokens + self.config.text_tokens + self.config.instruct_tokens

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
    return Layout(config, references)


def source_ids(layout: Layout) -> torch.Tensor:
    """Row of the index table for every source token, [source_tokens] int64.

    With ``background_index="last_reference"`` the background has the row of the last reference slot and the table's
    last row is never used (QUIRK 1).
    """
    rows = torch.tensor(layout.source_slots)
    if layout.config.background_index == "last_reference":
        rows = rows.clamp_max(layout.config.max_references - 1)
    return rows.repeat_interleave(layout.image_tokens)


def null_rows(layout: Layout) -> torch.Tensor:
    """Row of the null-image table for every source token, [source_tokens] int64: slot * N + raster position."""
    return _flat(layout, layout.source_slots)


def _flat(layout: Layout, slots: list[int]) -> torch.Tensor:
    """slot * N + raster position of every token of the blocks, [blocks N] int64."""
    raster = torch.arange(layout.image_tokens)
    return torch.cat([raster + slot * layout.image_tokens for slot in slots])


def _with_text(layout: Layout, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    text = torch.full((layout.config.text_tokens + layout.config.instruct_tokens, 2), -1)
    return torch.cat([sources, text, targets])


def grid_coordinates(layout: Layout) -> torch.Tensor:
    """Row and column of every position, [T, 2] int64; (-1, -1) marks text and instruct positions.

    Layout "grid": every picture keeps its own grid, and the grids are stacked by slot: row = slot * grid + r,
    column = c. A reference and its copy in the target sit at the same place, and so do the background and the
    picture, so "the same place in the source" is one fixed offset.
    """

    def blocks(slots: list[int]) -> torch.Tensor:
        flat = _flat(layout, slots)
        return torch.stack([flat // layout.config.grid, flat % layout.config.grid], dim=1)

    return _with_text(layout, blocks(layout.source_slots), blocks(layout.target_slots))


def canvas_coordinates(layout: Layout) -> torch.Tensor:
    """Row and column of every position, [T, 2] int64, as in the released program (spec/tokenar.md section 2).

    Sources and targets have a canvas each, several pictures wide, and the second begins at the lower right of the
    first. Tokens come block by block but fill a canvas row by row, so that a picture's rows lie scattered over the
    canvas (QUIRK 4); published weights know no other order. The three released layouts follow from the number of
    source blocks: one ("edit"), two ("edit2"), a square ("editplus").

    UserError for a model whose pictures have no place in them.
    """
    config = layout.config
    if config.canvas_problem:
        raise UserError(f"model.{config.canvas_problem}")
    grid, (wide, target_wide) = config.grid, config.canvas_sides
    # A canvas of two pictures side by side ends after two grids; its targets begin after three all the same.
    offset = 3 if config.source_blocks == 2 else wide

    def scan(slots: list[int], width: int, start: int) -> torch.Tensor:
        flat = _flat(layout, slots)
        return torch.stack([flat // width + start, flat % width + start], dim=1)

    targets = layout.target_slots if config.identity_disentanglement else [0]
    return _with_text(
        layout, scan(layout.source_slots, wide * grid, 0), scan(targets, target_wide * grid, offset * grid)
    )


def rotary_table(coordinates: torch.Tensor, head_width: int, base: float, text_rotary: str = "zero") -> torch.Tensor:
    """Cosine and sine of every position and pair, [T, head_width / 2, 2] float32 (spec/tokenar.md section 2).

    The first half of the pairs turns by row * f_k, the second by column * f_k, with
    f_k = base ** (-2k / (head_width / 2)). Text and instruct positions have cos = sin = 0, which makes zero vectors of
    their queries and keys (QUIRK 3, in LlamaGen's weights too), or with ``text_rotary="identity"`` cos = 1, sin = 0,
    which leaves them as they are.

    Angles are float64, so that every machine makes the same table. The release's are float32: an angle of 100 is then
    off by up to 3e-5, and not by the same on every processor (see the golden test).
    """
    half = head_width // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2, dtype=torch.float64) / half)
    angles = coordinates.double()[:, :, None] * frequencies  # [T, 2, pairs]
    angles = angles.flatten(1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    table[coordinates[:, 0] < 0] = torch.tensor([float(text_rotary == "identity"), 0.0], dtype=torch.float64)
    return table.float()


def layout_rotary(layout: Layout) -> torch.Tensor:
    """The rotary table of a layout, [T, head_width / 2, 2] float32."""
    config = layout.config
    coordinates = grid_coordinates if config.rotary_layout == "grid" else canvas_coordinates
    return rotary_table(coordinates(layout), config.head_width, config.rotary_base, config.text_rotary)


def attention_mask(layout: Layout, length: int, text_mask: torch.Tensor | None) -> torch.Tensor:
    """Which of the first ``length`` positions (rows) see which (columns): [length, length] bool, True is seen.

    Causal; with ``source_attention="block"`` a source block sees the whole of itself and no other block
    (spec/tokenar.md section 6). With ``text_mask`` [B, text_tokens] the text positions that are False there are seen
    by nobody, and the mask is [B, 1, length, length].
    """
    device = None if text_mask is None else text_mask.device
    position = torch.arange(length, device=device)
    mask = position[:, None] >= position
    if layout.config.source_attention == "block":
        block = position[: layout.source_tokens] // layout.image_tokens
        mask[: layout.source_tokens, : layout.source_tokens] = block[:, None] == block
    if text_mask is None:
        return mask
    seen = torch.ones(len(text_mask), length, dtype=torch.bool, device=device)
    seen[:, layout.source_tokens : layout.source_tokens + layout.config.text_tokens] = text_mask
    return mask & seen[:, None, None, :]


def padding_last(layout: Layout, length: int, text_mask: torch.Tensor) -> torch.Tensor:
    """Order of the first ``length`` positions in which the text's padding comes last, [B, length] int64.

    ``text_mask`` [B, text_tokens] bool is True at the text's own positions; what is not moved keeps its order.
    """
    moved = torch.zeros(len(text_mask), length, dtype=torch.bool, device=text_mask.device)
    moved[:, layout.source_tokens : layout.source_tokens + layout.config.text_tokens] = ~text_mask
    return moved.int().argsort(dim=1, stable=True)


def apply_rotary(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring pairs of ``x`` [B, H, T, head_width] by ``table`` [T, head_width / 2, 2]; in float32.

    With a table for every sample it is [B, 1, T, head_width / 2, 2].
    """
    even, odd = x.float()[..., 0::2], x.float()[..., 1::2]
    cos, sin = table[..., 0], table[..., 1]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)
