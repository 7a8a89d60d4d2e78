"""Figures of the attention that maps.py measures: heat maps over pictures, and bar charts over the layers.

Shape legend: L layers, G target regions, S source segments; g is the side of a picture's token grid.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]

SIDE = 192
"""Pixels of the side of each picture in a heat map figure."""
DPI = 130
CELL, GAP, LABEL, TOP, BOTTOM = 0.95, 0.17, 0.95, 0.45, 0.28
"""Inches: the side of a picture, the gap between pictures, the width of the rows' names, and the margins above and
below the pictures."""
NOTE_LETTER, NOTE_LINE = 0.05, 0.12
"""Inches: width of a letter and height of a line of the note below the pictures."""
SOURCES_NOTE = (
    "Share of the region's attention that goes to each source. The colours of a row's block have one scale, linear "
    "from 0 to its 99th percentile."
)
PICTURE_NOTE = (
    "Share of the picture's attention that goes to each segment. The colours of a column have one scale, linear from "
    "0 to its 99th percentile."
)


def source_maps(
    path: Path,
    maps: Array,
    regions: Mapping[str, Image.Image],
    sources: Mapping[str, Image.Image],
    layers: Sequence[int],
    mean: bool = True,
) -> None:
    """Heat maps of where in the sources each target region attends to.

    Each region has a row. Each row has a block of one picture per source for the mean over all layers (unless ``mean``
    is False), and one block for each of ``layers``. ``maps`` [L, G, sources, g, g] is in the order of ``regions`` and
    ``sources``, which map names to pictures.
    """
    blocks, columns = _chosen(maps, layers), len(sources)
    blocks = blocks if mean else dict(list(blocks.items())[1:])
    breaks = [1, *range(1 + columns, len(blocks) * columns, columns)]
    grid = _Grid(len(regions), 1 + len(blocks) * columns, breaks, SOURCES_NOTE)
    for row, (name, picture) in enumerate(regions.items()):
        grid.name(row, name)
        grid.picture(row, 0, _square(picture))
        for number, block in enumerate(blocks.values()):
            for column, source in enumerate(sources.values()):
                heat = block[row, column]
                pixels = _overlay(source, heat, _top(block[row]))
                grid.picture(row, 1 + number * columns + column, pixels, f"{heat.sum():.0%}")
    grid.heading(0, 1, "target region")
    for number, name in enumerate(blocks):
        grid.heading(1 + number * columns, columns, name, list(sources))
    grid.save(path)


def picture_maps(
    path: Path, looks: Array, segments: Sequence[str], picture: Image.Image, layers: Sequence[int]
) -> None:
    """Heat maps of which tokens of the target picture attend to each source segment.

    Each segment has a column. The first row is the mean over all layers, then comes one row for each of ``layers``.
    ``looks`` [L, S, g, g] is in the order of ``segments``.
    """
    blocks = _chosen(looks, layers)
    grid = _Grid(len(blocks), 1 + len(segments), [1], PICTURE_NOTE)
    tops = [_top(np.stack([block[column] for block in blocks.values()])) for column in range(len(segments))]
    grid.picture(0, 0, _square(picture))
    for row, (name, block) in enumerate(blocks.items()):
        grid.name(row, name)
        for column, top in enumerate(tops):
            grid.picture(row, 1 + column, _overlay(picture, block[column], top), f"{block[column].mean():.1%}")
    grid.heading(0, 1, "picture")
    for column, name in enumerate(segments):
        grid.heading(1 + column, 1, _wrapped(name))
    grid.save(path)


def mass_chart(path: Path, mass: Array, regions: Sequence[str], segments: Sequence[str], title: str) -> None:
    """A bar chart for each region: by layer, the shares of its attention that go to the segments, stacked to 1.

    ``mass`` [L, G, S] is in the order of ``regions`` and ``segments``.
    """
    across = 2 if len(regions) == 4 else min(3, len(regions))
    down = -(-len(regions) // across)
    figure = Figure(figsize=(2.9 * across + 2.1, 2.15 * down + 0.5), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    colours = _colours(segments)
    for number, name in enumerate(regions):
        _stack(panels[number], mass[:, number], colours)
        panels[number].set_title(name, fontsize=9)
        if number + across >= len(regions):
            panels[number].set_xlabel("layer", fontsize=8)
            panels[number].tick_params(labelbottom=True)
    for panel in panels[len(regions) :]:
        panel.set_visible(False)
    for panel in panels[::across]:
        panel.set_ylabel("share of attention", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png", dpi=DPI)


def _stack(panel: Axes, mass: Array, colours: Mapping[str, tuple[float, ...]]) -> None:
    """Draw the stacked bars of one region from ``mass`` [L, S], each segment in its colour."""
    below = np.zeros(len(mass))
    for share, (name, colour) in zip(mass.T, colours.items(), strict=True):
        panel.bar(np.arange(len(mass)), share, 0.86, below, color=colour, label=name, linewidth=0)
        below += share
    panel.set(ylim=(0, 1), xlim=(-0.6, len(mass) - 0.4))
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def highlight(picture: Image.Image, cells: NDArray[np.bool_]) -> Image.Image:
    """The picture with the grid cells that are False in ``cells`` [g, g] faded to white."""
    outside = Image.fromarray((~cells).astype(np.uint8) * 200).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", picture.size, "white"), picture, outside)


class _Grid:
    """A figure of square pictures in rows and columns above a note, with wider gaps before the columns in ``breaks``.

    Positions are in inches. All pictures share one pair of axes, because a pair for each of them is much slower.
    """

    def __init__(self, rows: int, columns: int, breaks: Sequence[int], note: str):
        self.starts = [LABEL + i * (CELL + 0.04) + GAP * sum(i >= b for b in breaks) for i in range(columns)]
        width = self.starts[-1] + CELL + 0.1
        self.note = textwrap.wrap(note, int((width - LABEL) / NOTE_LETTER))
        self.height = TOP + rows * (CELL + GAP) + BOTTOM + NOTE_LINE * (len(self.note) - 1)
        self.figure = Figure(figsize=(width, self.height))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, self.height))
        self.axes.set_axis_off()

    def _bottom(self, row: int) -> float:
        return self.height - TOP - row * (CELL + GAP) - CELL

    def picture(self, row: int, column: int, pixels: NDArray[np.uint8], below: str = "") -> None:
        left, bottom = self.starts[column], self._bottom(row)
        extent = (left, left + CELL, bottom, bottom + CELL)
        self.axes.imshow(pixels, extent=extent, interpolation="antialiased", aspect="auto")
        self.axes.text(left + CELL / 2, bottom - 0.02, below, ha="center", va="top", fontsize=7)

    def name(self, row: int, name: str) -> None:
        self.axes.text(LABEL - 0.1, self._bottom(row) + CELL / 2, _wrapped(name), ha="right", va="center", fontsize=9)

    def heading(self, column: int, span: int, name: str, below: Sequence[str] = ()) -> None:
        """Write a name above ``span`` columns from ``column`` on, and under it one of ``below`` above each of them."""
        middle = (self.starts[column] + self.starts[column + span - 1] + CELL) / 2
        base = self.height - TOP + 0.05
        self.axes.text(middle, base + 0.17 * bool(below), name, ha="center", va="bottom", fontsize=9)
        for left, part in zip(self.starts[column:], below, strict=False):
            self.axes.text(left + CELL / 2, base, part, ha="center", va="bottom", fontsize=7, color="0.35")

    def save(self, path: Path) -> None:
        self.axes.text(LABEL, 0.08, "\n".join(self.note), fontsize=7, color="0.35", va="bottom")
        self.figure.savefig(path, format="png", dpi=DPI)


def _chosen(measured: Array, layers: Sequence[int]) -> dict[str, Array]:
    """The mean over all layers and the maps of the given layers, by name."""
    return {"all layers": measured.mean(0)} | {f"layer {layer}": measured[layer] for layer in layers}


def _wrapped(name: str) -> str:
    return name.replace(" of reference", " of\nreference").replace("instruct ", "instruct\n")


def _square(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _top(heat: Array) -> float:
    """The value at the end of the colour scale. Not the maximum, as a few tokens may get so much attention that all
    others would be black."""
    return float(np.percentile(heat, 99))


def _overlay(picture: Image.Image, heat: Array, top: float) -> NDArray[np.uint8]:
    """The picture in dark grey under a heat map [g, g], whose colours go from 0 to ``top``. [SIDE, SIDE, 3] uint8."""
    scaled = Image.fromarray(np.clip(heat / max(top, 1e-12), 0, 1).astype(np.float32))
    value = np.asarray(scaled.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    grey = 0.5 * _square(picture.convert("L")) / 255.0
    weight = 0.75 * value[..., None]
    lit = (1 - weight) * grey + weight * colormaps["inferno"](value)[..., :3]
    return (255 * lit).astype(np.uint8)


def _colours(segments: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Colours of the segments: a hue for each reference, a paler one for its copy, greys for all others."""
    fixed = {"background": 0.35, "text": 0.75, "instruct tokens": 0.6, "picture so far": 0.88}
    colours: dict[str, tuple[float, ...]] = {}
    for name in segments:
        if name in fixed:
            colours[name] = (fixed[name],) * 3
        else:
            number = int(name.rpartition(" ")[2])
            colours[name] = colormaps["tab20"](2 * number % 20 + name.startswith("copy"))
    return colours
