"""What generated subjects are painted with: patterns of two colours, and patches of packaged photographs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

from pipeline.references.packaged import load_backgrounds, packaged

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 44, 40), "orange": (232, 132, 34), "yellow": (236, 200, 52), "lime": (160, 200, 60),
    "green": (50, 136, 66), "teal": (22, 128, 124), "turquoise": (80, 196, 192), "blue": (44, 92, 190),
    "navy": (30, 42, 96), "purple": (116, 60, 156), "pink": (234, 132, 164), "maroon": (116, 28, 44),
    "brown": (124, 80, 46), "beige": (222, 200, 164), "white": (238, 236, 230), "grey": (132, 134, 138),
    "black": (46, 44, 48),
}  # fmt: skip
DARK, LIGHT = (44, 38, 36), (240, 236, 226)

Grid = np.ndarray
Pattern = Callable[[Grid, Grid, np.random.Generator], Grid]
"""From x and y [H, W], in which the subject measures 2, to the share of the second colour, 0..1 [H, W]."""


def varied(name: str, rng: np.random.Generator) -> np.ndarray:
    """A colour of this name, a little different each time, RGB [3]."""
    return np.clip(np.array(COLOURS[name]) + rng.uniform(-14, 14) + rng.uniform(-10, 10, 3), 8, 247)


def _edge(wave: Grid) -> Grid:
    """A wave around 0 as areas of 0 and 1 with edges that are a little soft."""
    return np.clip(0.5 + 6 * wave, 0, 1)


def _along(x: Grid, y: Grid, degrees: float) -> Grid:
    return x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))


def plain(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """No pattern."""
    return np.zeros_like(x)


def striped(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """Stripes across, along or aslant."""
    turn = rng.choice([0, 90, 45, 135]) + rng.uniform(-8, 8)
    return _edge(np.sin(2 * np.pi * (rng.uniform(2, 4) * _along(x, y, turn) + rng.random())))


def dotted(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """Dots on a lattice in which every second row is shifted."""
    step, size = rng.uniform(0.28, 0.45), rng.uniform(0.22, 0.36)
    row = np.floor(y / step + 0.5)
    across = x / step + 0.5 * (row % 2)
    return _edge(size - np.hypot(across - np.floor(across + 0.5), y / step - row))


def checked(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """A chessboard."""
    often, turn = rng.uniform(1.2, 2.4), rng.choice([0, 45])
    waves = [np.sin(2 * np.pi * often * _along(x, y, turn + quarter)) for quarter in (0, 90)]
    return _edge(waves[0] * waves[1])


def shaded(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """One colour runs into the other."""
    return np.clip(0.5 + rng.uniform(0.5, 0.9) * _along(x, y, rng.uniform(0, 360)), 0, 1)


def ringed(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """Rings around a point."""
    at = rng.uniform(-0.3, 0.3, 2)
    return _edge(np.sin(2 * np.pi * rng.uniform(1.6, 3) * np.hypot(x - at[0], y - at[1])))


def zigzag(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """Stripes that go up and down."""
    often = rng.uniform(1.2, 2.2)
    fold = np.abs(2 * (often * x - np.floor(often * x + 0.5)))
    return _edge(np.sin(2 * np.pi * (rng.uniform(1.8, 3) * y + rng.uniform(0.3, 0.6) * fold)))


def marbled(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """Veins."""
    bent = _along(x, y, rng.uniform(0, 180)) + 0.35 * (clouds(x.shape, rng, 5) + 0.5 * clouds(x.shape, rng, 11))
    return np.abs(np.sin(2 * np.pi * rng.uniform(0.8, 1.4) * bent)) ** 2


def speckled(x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """Specks of random sizes."""
    return _edge(clouds(x.shape, rng, int(rng.integers(14, 24))) - 0.25)


def clouds(shape: tuple[int, ...], rng: np.random.Generator, cells: int) -> Grid:
    """Smooth noise around 0 [H, W], with ``cells`` hills across the longer side."""
    hills = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    side = max(shape)
    return cv2.resize(hills, (side, side), interpolation=cv2.INTER_CUBIC)[: shape[0], : shape[1]].astype(float)


PATTERNS: dict[str, Pattern] = {
    pattern.__name__: pattern
    for pattern in (plain, striped, dotted, checked, shaded, ringed, zigzag, marbled, speckled)
}


@cache
def texture_names() -> tuple[tuple[str, bool], ...]:
    """Of every packaged background that serves as a texture: its name, and whether its own colours do too."""
    entries = packaged()["backgrounds"]
    return tuple((e["texture"], e.get("own_colours", False)) for e in entries if "texture" in e)


@cache
def texture_photographs() -> dict[str, np.ndarray]:
    """The packaged backgrounds that serve as textures by the textures' names, RGB [H, W, 3]. Not to be modified."""
    photographs = dict(load_backgrounds())
    entries = [entry for entry in packaged()["backgrounds"] if "texture" in entry]
    return {entry["texture"]: np.asarray(photographs[entry["name"]]) for entry in entries}


def patch(texture: str, shape: tuple[int, int], tint: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """A patch [H, W, 3] of a texture's photograph at medium brightness; with a tint [3], in shades of that colour."""
    photograph = texture_photographs()[texture]
    side = int(min(photograph.shape[:2]) * rng.uniform(0.6, 1))
    top, left = (int(rng.integers(length - side + 1)) for length in photograph.shape[:2])
    crop = np.rot90(photograph[top : top + side, left : left + side], int(rng.integers(4)))
    longer = max(shape)
    scaled = cv2.resize(np.ascontiguousarray(crop), (longer, longer), interpolation=cv2.INTER_AREA)
    pixels = scaled[: shape[0], : shape[1]].astype(float)
    light = pixels.mean(2, keepdims=True)
    contrast = 0.32 / max(0.12, light.std() / max(light.mean(), 1.0))  # flat and harsh photographs alike
    if tint is None:
        return np.clip(pixels * (120 / max(light.mean(), 1.0)), 0, 255)
    return np.clip(tint * (1 + min(contrast, 2.0) * (light / max(light.mean(), 1.0) - 1)), 0, 255)
