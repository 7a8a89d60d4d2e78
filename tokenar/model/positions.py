"""Where every token of a sequence is: segments, index ids, rotary positions, attention mask. All functions are pure.

A sequence is

    [reference 0 | ... | reference R-1 | background | text | instruct tokens | target blocks]

Every image is a block of N = grid x grid tokens in raster order. With identity disentanglement the target blocks are
copies of the R references and then the picture (paper, section 3.1.2); without it, the picture alone.

Every block has a *slot*. Reference i and its copy have slot i; the background and the picture have the last slot,
number ``max_references``. The slot chooses the block's rows in the null-image table, its place in the rotary layout
and, except with ``background_index="last_reference"``, its row in the index table. Only references that exist get a
block (docs/differences.md, "Missing references").

Shape legend: B batch, T positions of a sequence, H heads, N tokens an image, R references.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_schemas.errors import UserError
from tokenar.model.config import ModelConfig


@dataclass(frozen=True)
class Layout:
    """The segments of a sequence with ``references`` references (R), and their lengths in tokens."""

    config: ModelConfig
    references: int

    @property
    def image_tokens(self) -> int:
        """Tokens of one image (N)."""
        return self.config.image_tokens

    @property
    def source_slots(self) -> list[int]:
        """Slots of the source blocks, in sequence order."""
        background = [self.config.max_references] if self.config.background else []
        return [*range(self.references), *background]

    @property
    def reference_copies(self) -> int:
        """Copies of references in the target, before the picture: R with identity disentanglement, else 0."""
        return self.references if self.config.identity_disentanglement else 0

    @property
    def target_slots(self) -> list[int]:
        """Slots of the target blocks, in sequence order; the picture comes last."""
        return [*range(self.reference_copies), self.config.max_references]

    @property
    def source_tokens(self) -> int:
        """Tokens of the references and the background."""
        return len(self.source_slots) * self.image_tokens

    @property
    def prefix(self) -> int:
        """Tokens before the target: sources, text and instruct tokens."""
        return self.source_tokens + self.config.text_tokens + self.config.instruct_tokens

    @property
    def target_tokens(self) -> int:
        """Tokens of the references' copies and the picture."""
        return len(self.target_slots) * self.image_tokens

    @property
    def total(self) -> int:
        """Tokens of the whole sequence."""
        return self.prefix + self.target_tokens


def make_layout(config: ModelConfig, references: int) -> Layout:
    """The layout of sequences with ``references`` references; ValueError if the model does not take that many."""
    if not 1 <= references <= config.max_references:
        raise ValueError(f"{references} references; the model takes 1 to {config.max_references}")
    return Layout(config, references)


def source_ids(layout: Layout) -> torch.Tensor:
    """Row of the index table for every source token, [source_tokens] int64.

    With ``background_index="last_reference"`` the background has the row of the last reference slot, and the table's
    last row is never used (docs/differences.md, "Background index").
    """
    rows = torch.tensor(layout.source_slots)
    if layout.config.background_index == "last_reference":
        rows = rows.clamp_max(layout.config.max_references - 1)
    return rows.repeat_interleave(layout.image_tokens)


def null_rows(layout: Layout) -> torch.Tensor:
    """Row of the null-image table for every source token, [source_tokens] int64: slot * N + position in the image."""
    return _flat(layout, layout.source_slots)


def _flat(layout: Layout, slots: list[int]) -> torch.Tensor:
    """slot * N + position in the image, for every token of the blocks with these slots: [len(slots) * N] int64."""
    raster = torch.arange(layout.image_tokens)
    return torch.cat([raster + slot * layout.image_tokens for slot in slots])


def _with_text(layout: Layout, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Join source and target coordinates, with (-1, -1) for the text and instruct positions between them."""
    text = torch.full((layout.config.text_tokens + layout.config.instruct_tokens, 2), -1)
    return torch.cat([sources, text, targets])


def grid_coordinates(layout: Layout) -> torch.Tensor:
    """Row and column of every position in ``rotary_layout="grid"``, [T, 2] int64; (-1, -1) at text and instruct tokens.

    Every image keeps its own grid, and the grids are stacked by slot: token (r, c) of an image has row
    slot * grid + r and column c. A reference and its copy in the target have the same coordinates, and so have the
    background and the picture. A token and its counterpart in the source are thus at distance 0 in rotary position.
    """

    def blocks(slots: list[int]) -> torch.Tensor:
        flat = _flat(layout, slots)
        return torch.stack([flat // layout.config.grid, flat % layout.config.grid], dim=1)

    return _with_text(layout, blocks(layout.source_slots), blocks(layout.target_slots))


def canvas_coordinates(layout: Layout) -> torch.Tensor:
    """Row and column of every position in ``rotary_layout="canvas"``, [T, 2] int64, as in the released program.

    The sources share one canvas several images wide and the targets another one, which begins at the lower right
    corner of the first. The tokens come block by block but fill a canvas row by row, so the rows of one image are
    scattered over the canvas (docs/differences.md, "Canvas positions"). Published weights need these positions. The
    release has three layouts, chosen by the number of source blocks: one ("edit"), two ("edit2"), or a square number
    ("editplus").

    UserError if the canvases have no room for the model's images.
    """
    config = layout.config
    if config.canvas_problem:
        raise UserError(f"model.{config.canvas_problem}")
    grid, (wide, target_wide) = config.grid, config.canvas_sides
    # With two sources side by side the source canvas is two grids wide, but the release starts the targets at three.
    offset = 3 if config.source_blocks == 2 else wide

    def scan(slots: list[int], width: int, start: int) -> torch.Tensor:
        flat = _flat(layout, slots)
        return torch.stack([flat // width + start, flat % width + start], dim=1)

    targets = layout.target_slots if config.identity_disentanglement else [0]
    return _with_text(
        layout, scan(layout.source_slots, wide * grid, 0), scan(targets, target_wide * grid, offset * grid)
    )


def rotary_table(coordinates: torch.Tensor, head_width: int, base: float, text_rotary: str = "zero") -> torch.Tensor:
    """Cosine and sine for every position and pair of channels, [T, head_width / 2, 2] float32.

    The first half of the pairs is rotated by the angle row * f_k, the second half by column * f_k, where
    f_k = base ** (-2k / (head_width / 2)). Text and instruct positions have cos = sin = 0, which turns their queries
    and keys into zero vectors (docs/differences.md, "Text rotation"). With ``text_rotary="identity"`` they have
    cos = 1 and sin = 0, which leaves queries and keys unchanged.

    The angles are computed in float64, so that every machine makes the same table. The release computes them in
    float32, where an angle of 100 is off by up to 3e-5, and by other amounts on other processors.
    """
    half = head_width // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2, dtype=torch.float64) / half)
    angles = coordinates.double()[:, :, None] * frequencies  # [T, 2, pairs]
    angles = angles.flatten(1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    table[coordinates[:, 0] < 0] = torch.tensor([float(text_rotary == "identity"), 0.0], dtype=torch.float64)
    return table.float()


def layout_rotary(layout: Layout) -> torch.Tensor:
    """The rotary table of a layout, [T, head_width / 2, 2] float32; [T - 1, ...] with ``neighbours``."""
    config = layout.config
    coordinates = (grid_coordinates if config.rotary_layout == "grid" else canvas_coordinates)(layout)
    if config.neighbours:
        # A position stands where the token is that it predicts. The target's last token predicts none.
        coordinates = torch.cat([coordinates[: layout.prefix - 1], coordinates[layout.prefix :]])
    return rotary_table(coordinates, config.head_width, config.rotary_base, config.text_rotary)


def attention_mask(layout: Layout, length: int, text_mask: torch.Tensor | None, first: int = 0) -> torch.Tensor:
    """Which of the first ``length`` positions (columns) those from ``first`` on (rows) attend to: [length - first,
    length] bool.

    The mask is causal. With ``source_attention="block"`` the tokens of a source image attend to all tokens of that
    image and to nothing else. With ``text_mask`` [B, text_tokens] bool no position attends to the text positions that
    are False there, and the mask has a batch dimension: [B, 1, length - first, length].
    """
    device = None if text_mask is None else text_mask.device
    position = torch.arange(length, device=device)
    mask = position[first:, None] >= position
    if layout.config.source_attention == "block":
        block = position[: layout.source_tokens] // layout.image_tokens
        mask[: max(0, layout.source_tokens - first), : layout.source_tokens] = block[first:, None] == block
    if text_mask is None:
        return mask
    visible = torch.ones(len(text_mask), length, dtype=torch.bool, device=device)
    visible[:, layout.source_tokens : layout.source_tokens + layout.config.text_tokens] = text_mask
    return mask & visible[:, None, None, :]


def padding_last(layout: Layout, length: int, text_mask: torch.Tensor) -> torch.Tensor:
    """A permutation of the first ``length`` positions that puts the text's padding last, [B, length] int64.

    ``text_mask`` [B, text_tokens] bool is False at padding. All other positions keep their order.
    """
    padding = torch.zeros(len(text_mask), length, dtype=torch.bool, device=text_mask.device)
    padding[:, layout.source_tokens : layout.source_tokens + layout.config.text_tokens] = ~text_mask
    return padding.int().argsort(dim=1, stable=True)


def apply_rotary(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs of channels of ``x`` [B, H, T, head_width], in float32.

    ``table`` holds cosine and sine, [T, head_width / 2, 2], or [B, 1, T, head_width / 2, 2] with positions of its own
    for every sample.
    """
    even, odd = x.float()[..., 0::2], x.float()[..., 1::2]
    cos, sin = table[..., 0], table[..., 1]
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).type_as(x)
