"""The references stage: cut-outs of reference pictures, made from their own alpha, a label map or with GrabCut."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Self

import cv2
import numpy as np
from PIL import Image
from pydantic import Discriminator, Field, Tag, model_validator

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.storage import Unreadable
from data_schemas.io.text import one_line
from pipeline.core.parts import join_digests
from pipeline.core.stage import SampleError, StageConfig, any_of, describe_error
from pipeline.matting.grabcut import run_grabcut
from pipeline.references import copies, layouts, pools
from pipeline.references.boxes import Box, in_pixels
from pipeline.references.files import census
from pipeline.references.generated.subjects import Generated, draw
from pipeline.references.pools import PoolConfig
from pipeline.references.sources import Reader, Source

VERSION = 5
MEAN_PART, LARGEST_PART = 32, 128
"""Reference pictures in a part of the pool: about two seconds of work and a few megabytes."""

WORKING_SIDE = 384
"""Longest side, in pixels, of the picture that GrabCut works on."""

MIN_SHARE = 0.01
"""A cut-out that covers less than this share of its box counts as empty."""

MIN_SIDE = 8
"""A subject whose longer side has fewer pixels than this in its file counts as empty."""

MIN_THICKNESS = 2
"""A subject whose shorter side has fewer pixels than this, in its file or in its stored cut-out, is too thin to use."""

EDGE = 0.8
"""Sigma of the blur that softens the edge of a matte, in pixels."""


def _kind(pool: Any) -> str:
    return "name" if isinstance(pool, str) else "pools"


OneName = Annotated[str, Field(min_length=1), Tag("name")]
SeveralPools = Annotated[list[PoolConfig], Field(min_length=1), Tag("pools")]


class ReferencesConfig(StageConfig):
    """Where the reference pictures come from, and the size of their cut-outs.

    At size 256 a cut-out takes about 70 KB and 30 ms, so set ``limit`` of a large pool for a first look.
    """

    pool: Annotated[OneName | SeveralPools, Discriminator(_kind)] = Field(
        "packaged",
        description="'packaged', 'generated', a folder, its URL, a preset such as relationbench, or a list of pools",
        json_schema_extra=any_of,
    )
    count: int | None = Field(None, ge=1, le=10**6, description="Subjects, if the pool is 'generated'; None: 2000")
    size: int = Field(256, ge=32, le=2048, description="Longest side of a stored cut-out, in pixels")

    @model_validator(mode="after")
    def _count_needs_a_generated_pool(self) -> Self:
        if self.count is not None and self.pool != "generated":
            raise ValueError("count belongs to the pool 'generated'; in a list: {source: generated, count: ...}")
        return self

    def pools(self) -> list[PoolConfig]:
        """The pools as a list, also if the config names a single one."""
        if self.pool == "generated":
            return [PoolConfig(source="generated", count=self.count)]
        return [PoolConfig.model_validate(self.pool)] if isinstance(self.pool, str) else self.pool


def list_pool(config: ReferencesConfig) -> list[Source]:
    """All reference pictures of all pools. Reads every file to compute its digest, but decodes none."""
    taken = [s for pool in config.pools() for s in pools.take(pools.list_pool(pool), pool.limit)]
    return pools.tell_apart(taken)


def in_parts(sources: Sequence[Source]) -> dict[str, list[Source]]:
    """The pictures of a pool by the name of their part, in the pool's order.

    A part ends with a picture whose id says so, one of MEAN_PART, and is named after it. A picture that is added or
    removed therefore changes one part and leaves the others as they are.
    """
    parts: dict[str, list[Source]] = {}
    own: list[Source] = []
    for source in sources:
        own.append(source)
        if int(source.reference_id, 16) % MEAN_PART == 0 or len(own) == LARGEST_PART:
            parts[f"pool-{source.reference_id}"], own = own, []
    return parts | ({"pool-end": own} if own else {})


def sources_digest(sources: Sequence[Source]) -> str:
    """The digest of what a part of the pool is made from."""
    return join_digests(text for source in sources for text in (source.reference_id, source.source, str(source.mirror)))


def skipped(config: ReferencesConfig) -> list[str]:
    """One line for each pool whose folder contains files of kinds that are not read."""
    counted = [(pool.source, layouts.skipped(pool)) for pool in config.pools()]
    return [
        f"references.pool {source}: files of kinds that are not read, skipped: {census(kinds)}"
        for source, kinds in counted
        if kinds
    ]


def make_references(
    sources: Sequence[Source],
    config: ReferencesConfig,
    made: Mapping[str, tuple[dict, Mapping[str, bytes]]] = MappingProxyType({}),
) -> tuple[list[dict], dict[str, Mapping[str, bytes]], dict[str, float]]:
    """Make the cut-outs of ``sources``. A picture that fails gets an error row and does not affect the others.

    ``made`` has rows and cut-outs, by reference id, that were made before and are taken over.

    Returns rows, cut-outs (reference id -> file name -> bytes) and seconds by reference id.
    """
    rows: list[dict] = []
    members: dict[str, Mapping[str, bytes]] = {}
    seconds: dict[str, float] = {}
    reader = Reader()
    for source in sources:
        began = time.perf_counter()
        try:
            if source.reference_id in made:
                row, members[source.reference_id] = made[source.reference_id]
                row = row | {"source": source.source, "mirror": source.mirror}
            else:
                row, members[source.reference_id] = make_reference(source, config, reader)
        except Unreadable:
            raise  # not an error of the picture
        except Exception as error:
            code, message = describe_error(error)
            row = _row(source, "error", error_code=code, error_message=one_line(message))
        rows.append(row)
        seconds[source.reference_id] = round(time.perf_counter() - began, 4)
    rows = copies.mark_duplicates(rows)
    usable = {row["reference_id"] for row in rows if row["status"] == "ok"}
    return rows, {reference_id: files for reference_id, files in members.items() if reference_id in usable}, seconds


def make_reference(source: Source, config: ReferencesConfig, reader: Reader) -> tuple[dict, dict[str, bytes]]:
    """The row of one picture and its cut-out, scaled so that its longest side is ``config.size`` pixels.

    The cut-out is stored twice: "cutout.png" is RGBA and "white.png" is RGB on white.
    """
    if isinstance(source.location, Generated):  # drawn at its size, so that its alpha stays exact
        cutout = draw(source.location, config.size)
        _check_subject(cutout, source, config.size)
        return _stored(source, cutout, pixels_digest(cutout))
    picture = pictures.decode(reader.read(source.location, source.source), source.source)
    labels = None
    if source.mask is not None:
        where = f"{source.source}: mask"
        labels = _selected(read_labels(reader.read(source.mask, where), where), source, picture.size)
    digest = pixels_digest(picture, labels)
    if labels is None:
        cutout = cut_out(picture, source.box, source.inside, source.outside)
    else:
        cutout = picture.convert("RGB")
        cutout.putalpha(Image.fromarray(_soften(labels)))
    _check_subject(cutout, source, config.size)
    ys, xs = np.nonzero(np.asarray(cutout.getchannel("A")) > 8)
    cutout = cutout.crop((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    scale = config.size / max(cutout.size)
    width, height = (max(1, round(side * scale)) for side in cutout.size)
    return _stored(source, cutout.resize((width, height), Image.Resampling.LANCZOS), digest)


def _stored(source: Source, cutout: Image.Image, digest: str) -> tuple[dict, dict[str, bytes]]:
    """The row of a cut-out that has its final size, and its two files."""
    share = float(np.asarray(cutout.getchannel("A")).mean() / 255)
    row = _row(source, "ok", width=cutout.width, height=cutout.height, area_share=share, pixels_sha256=digest)
    flat = pictures.on_white(cutout)  # what models are shown; made here once instead of for every shard
    files = {"cutout.png": pictures.encode_png(cutout), "white.png": pictures.encode_png(flat)}
    return row | copies.marks_of(flat), files


def _check_subject(cutout: Image.Image, source: Source, size: int) -> None:
    """Raise SampleError if the solid part of a cut-out is too small or too thin to show at ``size`` pixels."""
    solid = np.asarray(cutout.getchannel("A")) > 127
    shorter, longer = sorted(np.ptp(np.nonzero(solid), axis=1) + 1) if solid.any() else (0, 0)
    if solid.mean() < MIN_SHARE or longer < MIN_SIDE:
        message = "no subject could be cut out; make its background transparent or choose another picture"
        raise SampleError("empty_cutout", f"{source.source}: {message}")
    thickness = min(shorter, round(shorter * size / longer))
    if thickness < MIN_THICKNESS:
        message = (
            f"its subject is {longer} pixels long and {shorter} wide, {max(1, thickness)} pixel wide at size {size}"
        )
        raise SampleError("thin_subject", f"{source.source}: {message}; choose another picture")


def pixels_digest(picture: Image.Image, labels: np.ndarray | None = None) -> str:
    """SHA-256 of a picture's visible pixels and, if it has one, of the subject's mask [H, W] of 0 and 1.

    It is the same for every lossless file format, because colours under fully transparent pixels do not count.
    """
    pixels = np.array(picture.convert("RGBA"))
    pixels[pixels[..., 3] == 0] = 0
    digest = hashlib.sha256(f"{picture.width} x {picture.height} ".encode())
    digest.update(pixels.data)
    if labels is not None:
        digest.update(labels.data)
    return digest.hexdigest()


def read_labels(data: bytes, source: str) -> np.ndarray:
    """The label map [H, W] in a picture.

    Labels are the values of a grey picture, the indices of a palette, or the largest channel of a colour picture. EXIF
    orientation is ignored, because a label map matches the picture as it is displayed.
    """
    stored = pictures.decode_as_stored(data, source)
    if stored.mode in ("P", "L") or stored.mode.startswith("I"):
        return np.asarray(stored)
    return np.asarray(stored.convert("RGB")).max(2)


def _selected(labels: np.ndarray, source: Source, size: tuple[int, int]) -> np.ndarray:
    """The mask [H, W] uint8 that is 1 where the label is one of ``source.labels`` (None: any but 0)."""
    if labels.shape != size[::-1]:
        height, width = labels.shape
        message = f"the mask has {width} x {height} pixels, the picture {size[0]} x {size[1]}"
        raise SampleError("bad_mask", f"{source.source}: {message}; mend or remove it")
    solid = labels != 0 if source.labels is None else np.isin(labels, source.labels)
    return solid.astype(np.uint8)


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
        "pixels_sha256": None,
        "mirror": source.mirror,
        **dict.fromkeys(copies.MARKS),
        **values,
    }


def cut_out(
    picture: Image.Image, box: Box | None, inside: Sequence[Box] = (), outside: Sequence[Box] = ()
) -> Image.Image:
    """The subject inside ``box`` as RGBA of the box's size, made from the picture's own alpha or else with GrabCut.

    ``inside`` and ``outside`` are boxes that certainly are or are not the subject.
    """
    area = in_pixels(box or (0.0, 0.0, 1.0, 1.0), picture.size)
    if picture.mode == "RGBA":
        crop = picture.crop(area)
        # fewer transparent pixels are just rounded corners
        if (np.asarray(crop.getchannel("A")) < 128).mean() >= 0.005:
            return crop
    picture = picture.convert("RGB")
    if box is None:  # the outermost rows and columns count as background
        box, around = (0.02, 0.02, 0.98, 0.98), area
    else:  # the surroundings of the box are known to be background
        around = in_pixels((box[0] - 0.1, box[1] - 0.1, box[2] + 0.1, box[3] + 0.1), picture.size)
    scale = min(1.0, WORKING_SIDE / max(around[2] - around[0], around[3] - around[1]))
    size = [max(1, round((around[i + 2] - around[i]) * scale)) for i in range(2)]
    small = np.asarray(picture.crop(around).resize(size, Image.Resampling.BOX))

    labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    marks = [(box, cv2.GC_PR_FGD), *((b, cv2.GC_FGD) for b in inside), *((b, cv2.GC_BGD) for b in outside)]
    for part, label in marks:
        edges = in_pixels(part, picture.size)
        left, top, right, bottom = (max(0, round((edges[i] - around[i % 2]) * scale)) for i in range(4))
        labels[top:bottom, left:right] = label
    matte = Image.fromarray(grabcut_matte(small, labels))
    matte = matte.resize((around[2] - around[0], around[3] - around[1]), Image.Resampling.BILINEAR)
    crop = picture.crop(area)
    x, y = area[0] - around[0], area[1] - around[1]
    crop.putalpha(matte.crop((x, y, x + crop.width, y + crop.height)))
    return crop


def grabcut_matte(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The matte [H, W] uint8 (0..255) of an RGB picture [H, W, 3] uint8, from GrabCut labels [H, W] uint8.

    Pieces smaller than a fifth of the largest are removed, small holes are filled and the edge is softened. OpenCV's
    random numbers are seeded, so the same picture always gives the same matte.
    """
    if not (labels == cv2.GC_BGD).any() or not np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
        return np.zeros(labels.shape, np.uint8)  # GrabCut needs pixels of both kinds
    mask = run_grabcut(pixels, labels, 5)
    mask = _drop_small(mask, 0.2)
    mask = 1 - _drop_small(1 - mask, 0.0, 0.004 * mask.size)
    return _soften(mask)


def _soften(mask: np.ndarray) -> np.ndarray:
    """The mask [H, W] of 0 and 1 as a matte [H, W] uint8 with an edge softened by about a pixel."""
    return cv2.GaussianBlur(mask * np.uint8(255), (0, 0), EDGE)


def _drop_small(mask: np.ndarray, share: float, pixels: float = 0.0) -> np.ndarray:
    """The mask [H, W] of 0 and 1 without pieces below ``share`` of the largest piece or below ``pixels`` pixels."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA].astype(float)
    areas[0] = 0.0
    keep = (areas > 0) & (areas >= share * areas.max()) & (areas >= pixels)
    return keep[pieces].astype(np.uint8)


def check_pool(rows: Sequence[dict]) -> None:
    """Raise UserError unless the pool has usable references of at least two categories, which a sample pairs."""
    usable = [r for r in rows if r["status"] == "ok"]
    failed = Counter(r["error_code"] for r in rows if r["status"] != "ok")
    reasons = ", ".join(f"{code} {n}" for code, n in sorted(failed.items())) or "none"
    summary = f"{len(usable)} of {len(rows)} pictures usable; failed: {reasons}"
    if not usable:
        example = next((f" (first: {r['error_message']})" for r in rows), "")
        raise UserError(f"reference pool: no usable picture, {summary}{example}; replace them")
    categories = sorted({r["category"] for r in usable})
    if len(categories) < 2:
        raise UserError(
            f"reference pool: only one category, {categories[0]!r} ({summary}), but a sample pairs two; "
            "put pictures of another category into a sub-folder of their own"
        )
