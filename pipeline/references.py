"""Reference pictures made into cut-outs: by their own alpha, a label map, or GrabCut."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import cv2
import numpy as np
from PIL import Image, ImageOps
from pydantic import Discriminator, Field, Tag

from data_schemas import pictures
from data_schemas.errors import UserError
from pipeline import pools
from pipeline.matting.grabcut import run_grabcut
from pipeline.packaged import package_file, packaged
from pipeline.pools import Box, PoolConfig, Reader, Source
from pipeline.stage import SampleError, StageConfig, any_of, describe_error

VERSION = 2
WORKING_SIDE = 384
"""Longest side, in pixels, at which GrabCut looks at a subject."""

MIN_SHARE = 0.01
"""A cut-out that covers less than this share of its part of the picture counts as empty."""

MIN_SIDE = 8
"""A subject whose longer side is shorter than this, in pixels of its file, counts as empty."""

EDGE = 0.8
"""Softness of a matte's edge: sigma, in pixels."""


def _kind(pool: Any) -> str:
    return "name" if isinstance(pool, str) else "pools"


OneName = Annotated[str, Field(min_length=1), Tag("name")]
SeveralPools = Annotated[list[PoolConfig], Field(min_length=1), Tag("pools")]


class ReferencesConfig(StageConfig):
    """Where the reference pictures come from and how large their cut-outs are kept.

    All cut-outs of a run are one part, made in one go: some 70 KB and 30 ms each at size 256, so that ``limit`` of a
    large pool is worth setting for a first look.
    """

    pool: Annotated[OneName | SeveralPools, Discriminator(_kind)] = Field(
        "packaged",
        description="'packaged', a folder, a preset such as relationbench, or a list of pools",
        json_schema_extra=any_of,
    )
    size: int = Field(256, ge=32, le=2048, description="Longest side of a stored cut-out, in pixels")

    def pools(self) -> list[PoolConfig]:
        """The pools, whichever way they are written."""
        return [PoolConfig.model_validate(self.pool)] if isinstance(self.pool, str) else self.pool


def list_pool(config: ReferencesConfig) -> list[Source]:
    """Every picture to be used, pool after pool. Reads the files for their digests, decodes nothing."""
    taken = [s for pool in config.pools() for s in pools.take(pools.list_pool(pool), pool.limit)]
    return pools.tell_apart(taken)


def make_references(
    sources: Sequence[Source], config: ReferencesConfig
) -> tuple[list[dict], dict[str, dict[str, bytes]], dict[str, float]]:
    """Rows, cut-outs (id -> "cutout.png" -> bytes) and seconds (by id); a bad picture costs only its own row."""
    rows: list[dict] = []
    members: dict[str, dict[str, bytes]] = {}
    seconds: dict[str, float] = {}
    first: dict[tuple[str, Box | None], Source] = {}
    reader = Reader()
    for source in sources:
        began = time.perf_counter()
        try:
            same = first.get((source.sha256, source.box))
            if same is not None:
                message = f"{source.source}: the same picture as {same.source}; remove one"
                raise SampleError("duplicate", message)
            row, files_of = make_reference(source, config, reader)
            first[source.sha256, source.box] = source
            members[source.reference_id] = files_of
        except Exception as error:
            code, message = describe_error(error)
            row = _row(source, "error", error_code=code, error_message=message)
        rows.append(row)
        seconds[source.reference_id] = round(time.perf_counter() - began, 4)
    return rows, members, seconds


def make_reference(source: Source, config: ReferencesConfig, reader: Reader) -> tuple[dict, dict[str, bytes]]:
    """The row of one picture, and its cut-out, longest side ``config.size``: "cutout.png" is RGBA, "white.png" RGB."""
    picture = pictures.decode(reader.read(source.place, source.source), source.source)
    picture = ImageOps.exif_transpose(picture)
    if source.mask is None:
        cutout = cut_out(picture, source.box, source.inside, source.outside)
    else:
        data = reader.read(source.mask, f"{source.source}: mask")
        cutout = cut_out_by_labels(picture, read_labels(data, f"{source.source}: mask"), source)
    alpha = np.asarray(cutout.getchannel("A"))
    solid = alpha > 127
    if solid.mean() < MIN_SHARE or max(np.ptp(np.nonzero(solid), axis=1)) + 1 < MIN_SIDE:
        message = "no subject could be cut out; make its background transparent or choose another picture"
        raise SampleError("empty_cutout", f"{source.source}: {message}")
    ys, xs = np.nonzero(alpha > 8)
    cutout = cutout.crop((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    scale = config.size / max(cutout.size)
    width, height = (max(1, round(side * scale)) for side in cutout.size)
    cutout = cutout.resize((width, height), Image.Resampling.LANCZOS)
    share = float(np.asarray(cutout.getchannel("A")).mean() / 255)
    row = _row(source, "ok", width=width, height=height, area_share=share)
    flat = pictures.on_white(cutout)  # what a model is shown; made once here and not for every shard
    return row, {"cutout.png": pictures.encode_png(cutout), "white.png": pictures.encode_png(flat)}


def read_labels(data: bytes, source: str) -> np.ndarray:
    """The label map [H, W] in a picture: values of a grey one, indices of a palette, the largest channel of colours."""
    decoded = pictures.decode(data, source)  # refuses what is too large or broken
    raw = Image.open(io.BytesIO(data))
    if raw.mode == "P" or raw.mode.startswith("I"):  # decode would give a palette's colours, and clip 16 bits
        return np.asarray(raw)
    labels = np.asarray(decoded)
    return labels if labels.ndim == 2 else labels[..., :3].max(2)


def cut_out_by_labels(picture: Image.Image, labels: np.ndarray, source: Source) -> Image.Image:
    """The picture as RGBA, its alpha 1 where the label map [H, W] is one of ``source.labels`` (None: is not 0)."""
    if labels.shape != (picture.height, picture.width):
        height, width = labels.shape
        message = f"the mask has {width} x {height} pixels, the picture {picture.width} x {picture.height}"
        raise SampleError("bad_mask", f"{source.source}: {message}; mend or remove it")
    solid = labels != 0 if source.labels is None else np.isin(labels, source.labels)
    cutout = picture.convert("RGB")
    cutout.putalpha(Image.fromarray(_soften(solid.astype(np.uint8))))
    return cutout


def _row(source: Source, status: str, **values: object) -> dict:
    return {
        "reference_id": source.reference_id,
        "status": status,
        "error_code": None,
        "error_message": None,
        "subject_id": source.subject_id,
        "name": source.name,
        "category": source.category,
        "source": source.source,
        "source_sha256": source.sha256,
        "box": None if source.box is None else list(source.box),
        "width": None,
        "height": None,
        "area_share": None,
        **values,
    }


def cut_out(
    picture: Image.Image, box: Box | None, inside: Sequence[Box] = (), outside: Sequence[Box] = ()
) -> Image.Image:
    """The subject inside ``box`` as RGBA of the box's size: by the picture's own alpha, else by GrabCut."""
    area = _pixels(box or (0.0, 0.0, 1.0, 1.0), picture.size)
    if picture.mode == "RGBA":
        crop = picture.crop(area)
        if (np.asarray(crop.getchannel("A")) < 128).mean() >= 0.005:  # fewer clear pixels: rounded corners
            return crop
    picture = picture.convert("RGB")
    if box is None:  # the outermost rows and columns are taken for background
        box, around = (0.02, 0.02, 0.98, 0.98), area
    else:  # what lies around the box is known to be background
        around = _pixels((box[0] - 0.1, box[1] - 0.1, box[2] + 0.1, box[3] + 0.1), picture.size)
    scale = min(1.0, WORKING_SIDE / max(around[2] - around[0], around[3] - around[1]))
    size = [max(1, round((around[i + 2] - around[i]) * scale)) for i in range(2)]
    small = np.asarray(picture.crop(around).resize(size, Image.Resampling.BOX))

    labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    marks = [(box, cv2.GC_PR_FGD), *((b, cv2.GC_FGD) for b in inside), *((b, cv2.GC_BGD) for b in outside)]
    for part, label in marks:
        edges = _pixels(part, picture.size)
        left, top, right, bottom = (max(0, round((edges[i] - around[i % 2]) * scale)) for i in range(4))
        labels[top:bottom, left:right] = label
    matte = Image.fromarray(grabcut_matte(small, labels))
    matte = matte.resize((around[2] - around[0], around[3] - around[1]), Image.Resampling.BILINEAR)
    crop = picture.crop(area)
    x, y = area[0] - around[0], area[1] - around[1]
    crop.putalpha(matte.crop((x, y, x + crop.width, y + crop.height)))
    return crop


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of fractions in whole pixels of a picture of this size; at least one pixel, none outside."""
    width, height = size
    left, right = (min(width, max(0, round(edge * width))) for edge in box[::2])
    top, bottom = (min(height, max(0, round(edge * height))) for edge in box[1::2])
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(left + 1, right), max(top + 1, bottom)


def grabcut_matte(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Matte [H, W] uint8 (0..255) of an RGB picture [H, W, 3] uint8, from GrabCut labels [H, W] uint8.

    Pieces below a fifth of the largest are dropped, pinholes filled, the edge softened by a pixel. The same
    picture gives the same matte: OpenCV's random numbers are seeded first.
    """
    if not (labels == cv2.GC_BGD).any() or not np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
        return np.zeros(labels.shape, np.uint8)  # GrabCut needs some of both
    mask = run_grabcut(pixels, labels, 5)
    mask = _drop_small(mask, 0.2)
    mask = 1 - _drop_small(1 - mask, 0.0, 0.004 * mask.size)
    return _soften(mask)


def _soften(mask: np.ndarray) -> np.ndarray:
    """Matte [H, W] uint8 of a mask [H, W] of 0 and 1, its edge softened by a pixel."""
    return cv2.GaussianBlur(mask * np.uint8(255), (0, 0), EDGE)


def _drop_small(mask: np.ndarray, share: float, pixels: float = 0.0) -> np.ndarray:
    """The mask [H, W] of 0 and 1 without pieces below ``share`` of the largest one or below ``pixels``."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = 0.0
    keep = (areas > 0) & (areas >= share * areas.max()) & (areas >= pixels)
    return keep[pieces].astype(np.uint8)


def check_pool(rows: Sequence[dict]) -> None:
    """Raise UserError unless the pool can be paired: usable references of at least two categories."""
    usable = [r for r in rows if r["status"] == "ok"]
    failed = Counter(r["error_code"] for r in rows if r["status"] != "ok")
    reasons = ", ".join(f"{code} {n}" for code, n in sorted(failed.items())) or "none"
    told = f"{len(usable)} of {len(rows)} pictures usable; failed: {reasons}"
    if not usable:
        example = next((f" (first: {r['error_message']})" for r in rows), "")
        raise UserError(f"reference pool: no usable picture, {told}{example}; replace them")
    categories = sorted({r["category"] for r in usable})
    if len(categories) < 2:
        raise UserError(
            f"reference pool: only one category, {categories[0]!r} ({told}), but a sample pairs two; "
            "put pictures of another category into a sub-folder of their own"
        )


@cache
def load_backgrounds() -> tuple[tuple[str, Image.Image], ...]:
    """(name, RGB picture) of each packaged background, photographs without a subject. Do not modify."""
    found = []
    for entry in packaged()["backgrounds"]:
        path = package_file(entry["package"], entry["file"])
        picture = pictures.decode(path.read_bytes(), path.name).convert("RGB")
        found.append((entry["name"], picture.crop(_pixels(entry["box"], picture.size))))
    return tuple(found)
