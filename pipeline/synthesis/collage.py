"""The synthesis stage on a CPU: both cut-outs are pasted into their boxes on a photograph.

Some samples get a planted fault, so that the filters can be measured.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from pydantic import Field

from data_schemas.io import pictures
from data_schemas.tables import SYNTHESIS
from pipeline.core.stage import Sample, Stage, StageConfig
from pipeline.references import copies
from pipeline.references.packaged import load_backgrounds
from pipeline.synthesis.faults import (
    KINDS,
    NEED_ANOTHER,
    Fault,
    choose_fault,
    covering_box,
    free_box,
    hide,
    spoil_cutout,
    spoil_picture,
    visible_fault,
)  # fmt: skip
from pipeline.synthesis.pose import Pose, draw_pose, posed

UPRIGHT = Pose(False, 0.0, 0.0, 0.0, 0.0, 0.0, (0.5, 1.0))
"""The pose of a subject too many."""


class CollageConfig(StageConfig):
    """Settings of the collage."""

    backend: Literal["collage"] = Field(
        "collage", description="`collage` pastes the cut-outs onto a photograph, on the CPU and without weights"
    )
    size: int = Field(256, ge=64, le=1024, description="Side of the picture in pixels")
    fault_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of samples with a planted fault, to measure the filters' precision and recall",
    )
    pose: float = Field(
        0.5, ge=0, le=1, description="How far poses differ from the reference's: turn, shear, perspective"
    )
    faults: list[Fault] = Field(list(KINDS), min_length=1, description="Kinds of faults to plant, all equally likely")
    shown: Literal["pool", "pasted"] = Field(
        "pool",
        description="The references in the shards: as in the pool, or as pasted, moved to another place on white",
    )
    shown_step: int = Field(8, ge=1, le=256, description="References shown as pasted are moved by multiples of it")


class Collage(Stage):
    """Saves ``target`` (RGB) and ``alpha_true`` (L), the exact matte of the pasted subjects.

    With ``shown`` "pasted" it also saves ``reference_0`` and ``reference_1`` (RGBA of the picture's size): the subjects
    as they would be pasted without a fault, of the same size, in the same pose and light, at another place. A model of
    image tokens can then compose the picture from tokens that it finds in the references.
    """

    name = "synthesis"
    version = 7
    reads = ("references", "plan")
    columns = SYNTHESIS
    saves_pictures = True
    model = "collage"
    licence = "MIT"
    Config = CollageConfig

    def process(self, sample: Sample) -> dict:
        seed = sample.plan["seed"]
        scene, spoiling = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        fault, subject = choose_fault(sample.plan["index"], spoiling, self.config.fault_share, self.config.faults)
        cutouts = [sample.reference(i) for i in range(2)]
        another = sample.other() if fault in NEED_ANOTHER else None
        fault, subject = visible_fault(fault, subject, cutouts, another is not None)
        one = -1 if subject is None else subject  # the subject that the fault hits
        by_other = fault == "hidden" and spoiling.random() < 0.5
        size, boxes = self.config.size, [sample.plan["box_0"], sample.plan["box_1"]]
        picture = draw_background(scene, size)
        order = drawing_order(sample.plan["front"], scene)
        if by_other:
            order.sort(key=lambda i: i != one)  # the one that hides it is pasted later
            boxes[1 - one] = covering_box(boxes[one])
        layers: dict[int, Image.Image] = {}
        for i in order:
            cutout = relight(cutouts[i], scene)
            pose = draw_pose(sample.plan, i, self.config.pose, scene)
            if self.config.shown == "pasted":
                clean = place(cutout, sample.plan[f"box_{i}"], size, pose)
                elsewhere = np.random.default_rng([seed, 2 + i])
                shown = moved(clean, self.config.shown_step, elsewhere)
                sample.save(f"reference_{i}", shown)
                sample.save(f"reference_{i}_white", pictures.on_white(shown))
            if i == one:
                cutout = {"swapped": cutouts[1 - i], "replaced": another}.get(fault) or cutout
                cutout = spoil_cutout(cutout, fault)
            layers[i] = place(cutout, boxes[i], size, pose)
        if fault == "missing":
            del layers[one]
        if fault == "hidden":
            cover = layers[1 - one].getchannel("A") if by_other else None
            layers[one] = hide(layers[one], cover, spoiling)
        matte = np.zeros((size, size), np.float32)
        for layer in layers.values():
            picture, matte = paste(picture, layer), np.maximum(matte, alpha_of(layer))
        if fault in ("third", "duplicated"):
            extra = relight(another if fault == "third" and another else cutouts[one], spoiling)
            layer = place(extra, free_box(matte, spoiling), size, UPRIGHT)
            picture, matte = paste(picture, layer), np.maximum(matte, alpha_of(layer))
        if subject is None:
            picture = spoil_picture(picture, fault, spoiling)
        sample.save("target", picture)
        sample.save("alpha_true", Image.fromarray((matte * 255).round().astype(np.uint8)))
        return {"planted_fault": fault, "planted_subject": subject, "target_phash": copies.hash_of(picture)}


def alpha_of(layer: Image.Image) -> np.ndarray:
    """The alpha [H, W] of a layer (RGBA), in 0..1."""
    return np.asarray(layer.getchannel("A"), np.float32) / 255


def drawing_order(front: int | None, rng: np.random.Generator) -> list[int]:
    """Both subjects, the one that comes to lie in front last. Without a ``front`` it is left to chance."""
    order = [int(i) for i in rng.permutation(2)]
    return order if front is None else [1 - front, front]


def pick_background(rng: np.random.Generator) -> tuple[str, Image.Image]:
    """(name, RGB picture) of a random photograph without a subject. It is the first that a scene's generator draws."""
    backgrounds = load_backgrounds()
    return backgrounds[rng.integers(len(backgrounds))]


def draw_background(rng: np.random.Generator, size: int) -> Image.Image:
    """A random square crop of a random photograph, RGB, ``size`` x ``size`` pixels."""
    _, photo = pick_background(rng)
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


def moved(layer: Image.Image, step: int, rng: np.random.Generator) -> Image.Image:
    """The layer with its subject at a random place where all of it can be seen, a multiple of ``step`` pixels away."""
    left, top, right, bottom = layer.getchannel("A").getbbox() or (0, 0, *layer.size)
    x, y = (
        step * int(rng.integers(-(low // step), (side - high) // step + 1))
        for low, high, side in ((left, right, layer.width), (top, bottom, layer.height))
    )
    shown = Image.new("RGBA", layer.size, (0, 0, 0, 0))
    shown.paste(layer, (x, y))
    return shown


def paste(picture: Image.Image, layer: Image.Image) -> Image.Image:
    """The layer on top of the picture, with a soft shadow below it."""
    size = picture.width
    alpha = layer.getchannel("A")
    shadow = Image.new("L", picture.size, 0)
    shadow.paste(alpha, (round(size * 0.012), round(size * 0.02)))
    shadow = shadow.filter(ImageFilter.GaussianBlur(size * 0.02)).point(lambda a: round(a * 0.4))
    shaded = Image.composite(Image.new("RGB", picture.size, "black"), picture, shadow)
    return Image.alpha_composite(shaded.convert("RGBA"), layer).convert("RGB")
