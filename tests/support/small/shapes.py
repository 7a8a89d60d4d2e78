"""A pool of pictures in folders, made of the packaged photographs: shapes cut out of them, tinted, some with alpha.

python tests/support/small/shapes.py runs/pool --pictures 500
instructar curate --name pool --samples 2000 --set references.pool=runs/pool

One folder a shape. Of three pictures one is a PNG or WebP with alpha, two are JPEGs on a plain or a blurred background,
which GrabCut has to cut out. Names are in the files' names or, for every fifth, in a .txt beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_schemas.io import pictures
from pipeline.references.packaged import load_backgrounds, package_file, packaged

SIDE = 320
COLOURS = {
    "red": (214, 60, 50), "blue": (52, 104, 210), "green": (70, 160, 70), "yellow": (236, 200, 60),
    "violet": (150, 80, 190), "orange": (238, 140, 40), "white": (236, 236, 232), "black": (46, 44, 48),
}  # fmt: skip


def star(points: int, inner: float) -> list[tuple[float, float]]:
    """Corners of a star around (0.5, 0.5), in fractions of the picture."""
    turns = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, 0.46)
    return [(0.5 + r * np.cos(t), 0.5 + r * np.sin(t)) for t, r in zip(turns, radii, strict=True)]


SHAPES: dict[str, list[tuple[float, float]]] = {
    "star": star(5, 0.2),
    "cog": star(11, 0.36),
    "diamond": star(2, 0.3),
    "shield": [(0.1, 0.1), (0.9, 0.1), (0.86, 0.6), (0.5, 0.95), (0.14, 0.6)],
    "house": [
        (0.5, 0.06), (0.95, 0.45), (0.82, 0.45), (0.82, 0.94), (0.18, 0.94), (0.18, 0.45), (0.05, 0.45),
    ],
    "arrow": [
        (0.05, 0.38), (0.55, 0.38), (0.55, 0.15), (0.95, 0.5), (0.55, 0.85), (0.55, 0.62), (0.05, 0.62),
    ],
    "cross": [
        (0.36, 0.06), (0.64, 0.06), (0.64, 0.36), (0.94, 0.36), (0.94, 0.64), (0.64, 0.64), (0.64, 0.94),
        (0.36, 0.94), (0.36, 0.64), (0.06, 0.64), (0.06, 0.36), (0.36, 0.36),
    ],
    "vase": [
        (0.36, 0.05), (0.64, 0.05), (0.58, 0.22), (0.84, 0.55), (0.7, 0.95), (0.3, 0.95), (0.16, 0.55), (0.42, 0.22),
    ],
}  # fmt: skip


def textures() -> list[tuple[str, Image.Image]]:
    """(name, RGB picture) of every packaged photograph of a subject or a background."""
    found = [(entry["name"], entry["package"], entry["file"]) for entry in packaged()["subjects"]]
    photos = {file: (name, package_file(package, file)) for name, package, file in reversed(found)}
    subjects = [(name, pictures.decode(path.read_bytes(), path.name).convert("RGB")) for name, path in photos.values()]
    return [*subjects, *load_backgrounds()]


def shape_of(
    corners: list[tuple[float, float]], texture: Image.Image, colour: tuple, rng: np.random.Generator
) -> Image.Image:
    """The shape, RGBA, cut out of a random piece of the photograph, half in the colour."""
    side = int(min(texture.size) * rng.uniform(0.4, 0.9))
    left, top = (int(rng.integers(edge - side + 1)) for edge in texture.size)
    piece = texture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    tinted = Image.blend(piece, Image.new("RGB", piece.size, colour), 0.55)
    mask = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(mask).polygon([(4 * SIDE * x, 4 * SIDE * y) for x, y in corners], fill=255)
    turned = mask.rotate(rng.uniform(-12, 12)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    tinted.putalpha(turned)
    return tinted


def on_something(shape: Image.Image, texture: Image.Image, plain: bool, rng: np.random.Generator) -> Image.Image:
    """The shape, RGB, on a plain background or on a blurred photograph."""
    if plain:
        behind = Image.new("RGB", shape.size, tuple(int(v) for v in rng.integers(150, 256, 3)))
    else:
        behind = texture.resize(shape.size).filter(ImageFilter.GaussianBlur(24))
    behind.paste(shape, (0, 0), shape)
    return behind


def make_pool(folder: Path, count: int) -> int:
    """Write ``count`` pictures; returns the number of subjects with a background that has to be cut away."""
    rng, sources, opaque = np.random.default_rng(0), textures(), 0
    every = [(s, t, c) for s in SHAPES for t in range(len(sources)) for c in COLOURS]
    for number, k in enumerate(rng.permutation(len(every))[:count]):
        name, at, colour = every[k]
        shape = shape_of(SHAPES[name], sources[at][1], COLOURS[colour], rng)
        (folder / name).mkdir(parents=True, exist_ok=True)
        label = f"{colour} {sources[at][0]} {name}"
        stem = folder / name / (f"{number:04d}" if number % 5 == 0 else label.replace(" ", "_"))
        if number % 5 == 0:
            stem.with_suffix(".txt").write_text(f"a {label}\n")
        if number % 3 == 0:
            shape.save(stem.with_suffix(".png" if number % 2 else ".webp"), lossless=True)
        else:
            behind = sources[int(rng.integers(len(sources)))][1]
            on_something(shape, behind, number % 3 == 1, rng).save(stem.with_suffix(".jpg"), quality=92)
            opaque += 1
    return opaque


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--pictures", type=int, default=500)
    given = arguments.parse_args()
    opaque = make_pool(given.folder, given.pictures)
    print(json.dumps({"pool": str(given.folder), "pictures": given.pictures, "to_cut_out": opaque}))


if __name__ == "__main__":
    main()
