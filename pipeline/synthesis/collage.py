"""The synthesis stage on a CPU: both cut-outs are pasted into their boxes on a photograph.

Some samples get a planted fault, so that the filters can be measured.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from pydantic import Field

from data_schemas.tables import FAULTS, SYNTHESIS
from pipeline.core.stage import Sample, Stage, StageConfig
from pipeline.references.packaged import load_backgrounds
from pipeline.synthesis.pose import Pose, draw_pose, posed

KINDS = FAULTS[1:]
"""The faults that can be planted: all codes of the table but "none"."""


class CollageConfig(StageConfig):
    """Settings of the collage.

    ``fault_share`` of the samples get a known fault, so that the precision and recall of the filters can be measured.
    """

    backend: Literal["collage"] = "collage"
    size: int = Field(256, ge=64, le=1024, description="Side of the picture in pixels")
    fault_share: float = Field(0.2, ge=0, le=1)
    pose: float = Field(
        0.5, ge=0, le=1, description="How far poses differ from the reference's: turn, shear, perspective"
    )


class Collage(Stage):
    """Saves ``target`` (RGB) and ``alpha_true`` (L), the exact matte of the pasted subjects."""

    name = "synthesis"
    version = 2
    reads = ("references", "plan")
    columns = SYNTHESIS
    saves_pictures = True
    model = "collage"
    Config = CollageConfig

    def process(self, sample: Sample) -> dict:
        seed = sample.plan["seed"]
        scene, faults = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        fault, subject = choose_fault(sample.plan["index"], faults, self.config.fault_share)
        size = self.config.size
        picture = draw_background(scene, size)
        matte = np.zeros((size, size), np.float32)
        for i in drawing_order(sample.plan["front"], scene):
            cutout = relight(sample.reference(i), scene)
            other = sample.reference(1 - i)
            pose = draw_pose(sample.plan, i, self.config.pose, scene)
            if fault == "missing" and i == subject:
                continue
            if fault == "swapped" and i == subject:
                cutout = other
            layer = place(cutout, sample.plan[f"box_{i}"], size, pose)
            picture = paste(picture, layer)
            matte = np.maximum(matte, np.asarray(layer.getchannel("A"), np.float32) / 255)
        if fault == "colour":
            picture = extreme_colours(picture, faults)
        sample.save("target", picture)
        sample.save("alpha_true", Image.fromarray((matte * 255).round().astype(np.uint8)))
        return {"planted_fault": fault, "planted_subject": subject}


def choose_fault(index: int, rng: np.random.Generator, share: float) -> tuple[str, int | None]:
    """(fault, subject) of a sample, so that exactly ``share`` of a plan gets a fault.

    The subject is None if there is no fault or it affects the whole picture.
    """
    kind, subject = KINDS[rng.integers(3)], int(rng.integers(2))
    if int((index + 1) * share) == int(index * share):
        return "none", None
    return kind, None if kind == "colour" else subject


def drawing_order(front: int | None, rng: np.random.Generator) -> list[int]:
    """Both subjects, the one that comes to lie in front last. Without a ``front`` it is left to chance."""
    order = [int(i) for i in rng.permutation(2)]
    return order if front is None else [1 - front, front]


def draw_background(rng: np.random.Generator, size: int) -> Image.Image:
    """A random square crop of a random photograph, RGB, ``size`` x ``size`` pixels."""
    backgrounds = load_backgrounds()
    photo = backgrounds[rng.integers(len(backgrounds))][1]
    side = int(min(photo.size) * rng.uniform(0.7, 1.0))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    crop = photo.crop((left, top, left + side, top + side))
    crop = ImageOps.mirror(crop) if rng.random() < 0.5 else crop
    return crop.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def relight(cutout: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The cut-out in slightly different light: brightness, contrast, warmth, and a soft gradient across it."""
    pixels = np.asarray(cutout, np.float32)
    gain, gamma, warmth = rng.uniform(0.88, 1.1), rng.uniform(0.88, 1.12), rng.uniform(-0.05, 0.05)
    gradient = np.linspace(1 - rng.uniform(0, 0.12), 1, cutout.width, dtype=np.float32)[None, :, None]
    colours = 255 * (pixels[..., :3] / 255) ** gamma * gain * np.array([1 + warmth, 1, 1 - warmth]) * gradient
    lit = np.dstack([colours.clip(0, 255), pixels[..., 3]])
    return Image.fromarray(lit.round().astype(np.uint8), "RGBA")


def place(cutout: Image.Image, box: list[float], size: int, pose: Pose) -> Image.Image:
    """A transparent ``size`` x ``size`` layer with the cut-out in its pose, as large as its box allows."""
    cutout = posed(cutout, pose)
    bounds = cutout.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    cutout = cutout.crop(bounds)
    left, top, right, bottom = (v * size for v in box)
    scale = min((right - left) / cutout.width, (bottom - top) / cutout.height)
    width, height = max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))
    # premultiplied alpha keeps colours under transparent pixels from bleeding into the edge
    cutout = cutout.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    layer = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    x, y = pose.anchor
    layer.paste(cutout, (round(left + x * (right - left - width)), round(top + y * (bottom - top - height))))
    return layer


def paste(picture: Image.Image, layer: Image.Image) -> Image.Image:
    """The layer on top of the picture, with a soft shadow below it."""
    size = picture.width
    alpha = layer.getchannel("A")
    shadow = Image.new("L", picture.size, 0)
    shadow.paste(alpha, (round(size * 0.012), round(size * 0.02)))
    shadow = shadow.filter(ImageFilter.GaussianBlur(size * 0.02)).point(lambda a: round(a * 0.4))
    shaded = Image.composite(Image.new("RGB", picture.size, "black"), picture, shadow)
    return Image.alpha_composite(shaded.convert("RGBA"), layer).convert("RGB")


def extreme_colours(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture in colours that no photograph has: a heavy cast, extreme saturation or burnt contrast."""
    kind = rng.integers(3)
    if kind == 0:
        pixels = np.asarray(picture, np.float32)
        cast = np.full(3, 0.12)
        cast[rng.integers(3)] = 1.7
        return Image.fromarray((pixels * cast).clip(0, 255).astype(np.uint8))
    if kind == 1:
        hue, saturation, value = (np.asarray(c, np.int32) for c in picture.convert("HSV").split())
        turned = (hue + rng.integers(64, 192)) % 256
        loud = (saturation * 4 + 200).clip(0, 255)
        merged = np.dstack([turned, loud, (value * 1.2).clip(0, 255)]).astype(np.uint8)
        return Image.fromarray(merged, "HSV").convert("RGB")
    pixels = np.asarray(picture, np.float32)
    return Image.fromarray(((pixels - pixels.mean((0, 1))) * 12 + 128).clip(0, 255).astype(np.uint8))
