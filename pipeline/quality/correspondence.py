"""Finding the parts of a reference in a target: which cells of both look alike, wherever they lie and however lit.

Both pictures are divided into cells of CELL pixels, each with EfficientNet-Lite0's features at that stride. A cell of
the reference corresponds to the most similar cells of its subject's region (completeness and coherence of Simakov et
al., "Summarizing Visual Data Using Bidirectional Similarity", CVPR 2008, with learned features). Nothing is assumed of
the pose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps

from pipeline.identity.encoders import local_features

SIDE = 384
"""Side in pixels at which a target is compared."""
CELL = 16
GREY = (118, 118, 118)
"""What a reference lies on while it is encoded: middle grey has the least contrast with anything."""
SUBJECT, INNER = 0.6, 0.85
"""A cell is compared if so much of it is subject; its colour counts if INNER of it is."""
CANDIDATES = 3
"""Corresponding cells of which the one with the nearest colour counts: the best match may be a neighbour's."""
LIGHTNESS = 0.5
"""Weight of differences of lightness, which light changes more than colours."""
WORST_COLOUR = 60.0
UNRELATED = 0.3
"""Similarity of the nearest cell of any other picture."""
BACKGROUND = 0.2
SPOT = 3
"""Side in cells of the smallest extra subject that is looked for, an eighth of the picture's side."""
ORDINARY = -0.3
"""The difference between both similarities of an ordinary cell of a background."""


@dataclass(frozen=True)
class Cells:
    """Features [N, D] of length 1 and mean colours [N, 3] (CIELAB) of N cells."""

    features: np.ndarray
    colours: np.ndarray


@dataclass(frozen=True)
class Grid:
    """The cells of a target: features [G, G, D] of length 1, colours [G, G, 3], and ``centre`` [D] of the features.

    Features are centred on the picture's own mean, because what all cells share says nothing about any of them.
    """

    features: np.ndarray
    colours: np.ndarray
    centre: np.ndarray

    def part(self, mask: np.ndarray) -> Cells:
        """The cells where the mask [G, G] is true."""
        return Cells(self.features[mask], self.colours[mask])


def grid_of(target: Image.Image) -> Grid:
    """The cells of a target (RGB)."""
    scaled = target.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    features = local_features(scaled)
    centre = features.mean((0, 1))
    return Grid(_unit(features - centre), mean_colours(scaled), centre)


def mean_colours(picture: Image.Image) -> np.ndarray:
    """The mean CIELAB colour of every cell of a picture (RGB) whose sides are multiples of CELL, [rows, columns, 3]."""
    lab = cv2.cvtColor(np.asarray(picture, np.float32) / 255, cv2.COLOR_RGB2LAB)
    return cv2.resize(lab, (picture.width // CELL, picture.height // CELL), interpolation=cv2.INTER_AREA)


def box_cells(box: Sequence[float]) -> np.ndarray:
    """The share of every cell of a target that lies in a box (fractions), [G, G]."""
    count = SIDE // CELL
    edges = np.arange(count + 1) / count
    across, down = (
        (np.minimum(edges[1:], box[k + 2]) - np.maximum(edges[:-1], box[k])).clip(0) * count for k in range(2)
    )
    return down[:, None] * across


def near(box: Sequence[float]) -> np.ndarray:
    """The cells [G, G] in which a subject planned in ``box`` may lie: its own and those beside them."""
    return cv2.dilate(box_cells(box), np.ones((3, 3))) > 0.3


def reference_views(cutout: Image.Image, box: Sequence[float], centre: np.ndarray) -> list[tuple[Cells, np.ndarray]]:
    """(cells, share of subject in each [N]) of a cut-out (RGBA) and of its mirror image, at the size its box gives it.

    Features are centred on ``centre``, as those of the target are.
    """
    width, height = ((box[k + 2] - box[k]) * SIDE for k in range(2))
    scale = min(width / cutout.width, height / cutout.height)
    size = (max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale)))
    small = cutout.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    whole = [-(-side // CELL) * CELL for side in size]
    canvas = Image.new("RGBA", (whole[0], whole[1]), (*GREY, 0))
    canvas.paste(small)
    return [_view(canvas, centre), _view(ImageOps.mirror(canvas), centre)]


def _view(canvas: Image.Image, centre: np.ndarray) -> tuple[Cells, np.ndarray]:
    flat = Image.alpha_composite(Image.new("RGBA", canvas.size, (*GREY, 255)), canvas).convert("RGB")
    alpha = np.asarray(canvas.getchannel("A"), np.float32) / 255
    shares = cv2.resize(alpha, (canvas.width // CELL, canvas.height // CELL), interpolation=cv2.INTER_AREA)
    shares = shares.reshape(flat.height // CELL, flat.width // CELL)
    chosen = shares >= min(SUBJECT, float(shares.max()))  # a thin subject fills no cell
    features = _unit(local_features(flat) - centre)
    return Cells(features[chosen], mean_colours(flat).reshape(*shares.shape, 3)[chosen]), shares[chosen]


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-6)


def compare_region(views: Sequence[tuple[Cells, np.ndarray]], region: Cells) -> tuple[float, float]:
    """(how much of a reference is found in a region, how far its colours are from those where it is found).

    The first is the mean cosine similarity of the reference's cells with the best cells of the region, the second the
    mean distance of colours in CIELAB, weighted by how well a cell was found: where the other subject stands in front,
    colours say nothing. The view that fits better counts.
    """
    if not len(region.features):
        return 0.0, WORST_COLOUR
    similarities = [cells.features @ region.features.T for cells, _ in views]  # (N, cells of the region)
    best = max(range(len(views)), key=lambda k: float(similarities[k].max(1).mean()))
    (cells, shares), similar = views[best], similarities[best]
    inner = shares >= min(INNER, float(np.sort(shares)[-4:].min()))  # at least four cells
    matches = np.argsort(-similar, axis=1, kind="stable")[:, :CANDIDATES]
    weights = np.array([LIGHTNESS, 1, 1])
    distances = np.linalg.norm((region.colours[matches] - cells.colours[:, None]) * weights, axis=2).min(1)
    found = np.maximum(similar.max(1) - UNRELATED, 0.01)[inner] ** 2
    difference = float(np.average(np.minimum(distances[inner], WORST_COLOUR), weights=found))
    return float(similar.max(1).mean()), difference


def likeness_outside(grid: Grid, boxes: Sequence[Sequence[float]], references: Sequence[Cells]) -> float:
    """How much more the most suspicious spot outside all boxes looks like a subject than like a background.

    A cell's similarity with the references' nearest cell, less that with the background: with its BACKGROUND share of
    the cells outside, which an extra subject does not fill. The mean over SPOT x SPOT cells counts. Subjects of other
    kinds are found too, as they look more like a subject than a texture does. ORDINARY if the boxes leave nothing free.
    """
    outside = np.logical_and.reduce([box_cells(box) < 0.02 for box in boxes])
    free = grid.features[outside]
    if len(free) < SPOT * SPOT:
        return ORDINARY
    subject = (free @ np.concatenate([cells.features for cells in references]).T).max(1)
    rank = int((1 - BACKGROUND) * len(free))
    background = np.partition(free @ free.T, rank, axis=1)[:, rank]
    spots = np.full(outside.shape, ORDINARY, np.float32)
    spots[outside] = subject - background
    return float(cv2.blur(spots, (SPOT, SPOT)).max())
