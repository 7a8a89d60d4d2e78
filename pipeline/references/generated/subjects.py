"""Generated subjects: shapes, things and creatures in colours, patterns and textures, with exact alpha.

Subject k of a pool is made from the pool's seed and k alone, so it is the same in a pool of any size. Making one takes
a few milliseconds and reads nothing but the packaged photographs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache

import cv2
import numpy as np
from PIL import Image

from pipeline.references.generated.creatures import CREATURES
from pipeline.references.generated.fills import (
    COLOURS,
    DARK,
    LIGHT,
    PATTERNS,
    patch,
    texture_names,
    varied,
)
from pipeline.references.generated.outlines import Part
from pipeline.references.generated.shapes import SHAPES
from pipeline.references.packaged import package_file, packaged

VERSION = 1
"""Raised when the same seed and number give another subject."""

KINDS = {**SHAPES, **CREATURES}
CREATURE_SHARE = 0.4
"""Share of the subjects that are creatures, so that a plan finds pairs for relations between living beings."""
TEXTURE_SHARE = 0.3
SUBPIXEL = 4
"""Bits of an outline's position after the point, in pixels."""


@dataclass(frozen=True)
class Generated:
    """Which subject of which generated pool."""

    seed: int
    number: int

    @property
    def source(self) -> str:
        """Its name as a file of the pool."""
        return f"generated/{self.seed}/{self.number:06d}"

    @property
    def digest(self) -> str:
        """SHA-256 of all that its picture is made from but the code, which ``VERSION`` stands for."""
        return hashlib.sha256(json.dumps([VERSION, asdict(self), _photographs_digest()]).encode()).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """What a subject is: its kind, two colours, and a pattern of both or a texture (with ``tinted``, in the first)."""

    kind: str
    first: str
    second: str
    pattern: str = "plain"
    texture: str | None = None
    tinted: bool = True

    @property
    def name(self) -> str:
        """What a prompt calls the subject, such as "red and blue striped star", or "mossy blob"."""
        if self.texture is not None:
            return f"{self.first} {self.texture} {self.kind}" if self.tinted else f"{self.texture} {self.kind}"
        colours = self.first if self.second == "white" else f"{self.first} and {self.second}"
        return f"{colours} {self.kind}" if self.pattern == "plain" else f"{colours} {self.pattern} {self.kind}"


def recipe(subject: Generated) -> Recipe:
    """What the subject is. It is drawn apart from the subject's proportions, so that a pool is listed quickly."""
    rng = np.random.default_rng([subject.seed, subject.number, 0])
    kinds = list(CREATURES if rng.random() < CREATURE_SHARE else SHAPES)
    kind = kinds[int(rng.integers(len(kinds)))]
    first, second = (list(COLOURS)[int(k)] for k in rng.choice(len(COLOURS), 2, replace=False))
    if rng.random() < TEXTURE_SHARE:
        texture, own_colours = texture_names()[int(rng.integers(len(texture_names())))]
        return Recipe(kind, first, second, texture=texture, tinted=not (own_colours and rng.random() < 0.5))
    return Recipe(kind, first, second, list(PATTERNS)[int(rng.integers(len(PATTERNS)))])


def draw(subject: Generated, size: int) -> Image.Image:
    """The subject as RGBA, trimmed, with ``size`` pixels on its longer side."""
    what = recipe(subject)
    rng = np.random.default_rng([subject.seed, subject.number, 1])
    parts = KINDS[what.kind](rng)
    first, second = varied(what.first, rng), varied(what.second, rng)
    outlines, width, height = _fitted(parts, size)
    shape = (height, width)
    longer = max(shape)
    y, x = np.mgrid[:height, :width] * (2 / longer) - [[[height / longer]], [[width / longer]]]
    if what.texture is None:
        share = PATTERNS[what.pattern](x, y, rng)[..., None]
        main = first * (1 - share) + second * share
    else:
        main = patch(what.texture, shape, first if what.tinted else None, rng)
    colours = {"main": main, "second": second, "dark": np.array(DARK), "light": np.array(LIGHT)}
    pixels, alpha = np.zeros((*shape, 3)), np.zeros(shape)
    for part, outline in zip(parts, outlines, strict=True):
        mask = np.zeros(shape, np.uint8)
        points = np.round(outline * 2**SUBPIXEL).astype(np.int32)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, SUBPIXEL)
        cover = mask / 255.0
        if part.tone == "hole":
            alpha *= 1 - cover
            continue
        rim = np.clip(cv2.distanceTransform(mask, cv2.DIST_L2, 3) / (0.07 * longer), 0, 1)  # darker towards its edge
        painted = colours[part.tone] * (0.74 + 0.26 * rim[..., None])
        pixels += cover[..., None] * (painted - pixels)
        alpha += cover * (1 - alpha)
    turn = rng.uniform(-0.6, 0.6)
    pixels *= 1 - (0.16 * (y + turn * x))[..., None]  # light from above
    pixels[alpha == 0] = 0
    return Image.fromarray(np.dstack([pixels.clip(0, 255), alpha * 255]).round().astype(np.uint8), "RGBA")


def _fitted(parts: list[Part], size: int) -> tuple[list[np.ndarray], int, int]:
    """The parts' outlines in pixels, and the picture's width and height: the whole touches all four edges."""
    solid = np.concatenate([part.outline for part in parts if part.tone != "hole"])
    low, extent = solid.min(0), np.ptp(solid, axis=0)
    scale = (size - 1) / extent.max()
    width, height = (max(2, int(length)) for length in np.round(extent * scale) + 1)
    return [(part.outline - low) * scale for part in parts], width, height


@cache
def _photographs_digest() -> str:
    """SHA-256 of the photographs that textures are cut from."""
    digest = hashlib.sha256()
    for entry in packaged()["backgrounds"]:
        if "texture" in entry:
            digest.update(package_file(entry["package"], entry["file"]).read_bytes())
    return digest.hexdigest()
