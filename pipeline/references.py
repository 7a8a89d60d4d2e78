"""Reference pools: the packaged photographs or any folder of pictures, each made into a cut-out."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image, ImageOps
from pydantic import Field

from data_schemas import pictures
from data_schemas.errors import UserError
from pipeline.matting.grabcut import run_grabcut
from pipeline.stage import SampleError, StageConfig, describe_error

VERSION = 1
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
WORKING_SIDE = 384
"""Longest side, in pixels, at which GrabCut looks at a subject."""

MIN_SHARE = 0.01
"""A cut-out that covers less than this share of its part of the picture counts as empty."""

MIN_SIDE = 8
"""A subject whose longer side is shorter than this, in pixels of its file, counts as empty."""

Box = tuple[float, float, float, float]


class ReferencesConfig(StageConfig):
    """Where the reference pictures come from and how large their cut-outs are kept."""

    pool: str = Field("packaged", min_length=1, description="'packaged', or a folder of pictures")
    size: int = Field(256, ge=32, le=2048, description="Longest side of a stored cut-out, in pixels")


@dataclass(frozen=True)
class Source:
    """One reference picture before it is read.

    ``box`` is the part of the file that shows the subject (left, top, right, bottom, fractions; None for all
    of it), ``inside`` and ``outside`` parts that surely are or are not the subject; ``source`` is the path
    relative to the pool; ``sha256`` is empty if the file cannot be read.
    """

    reference_id: str
    subject_id: str
    name: str
    category: str
    source: str
    sha256: str
    box: Box | None
    path: Path
    inside: tuple[Box, ...] = ()
    outside: tuple[Box, ...] = ()


def list_pool(config: ReferencesConfig) -> list[Source]:
    """Every picture of the pool in a fixed order. Reads the files for their digests, decodes nothing."""
    if config.pool == "packaged":
        return [_packaged_source(entry) for entry in _packaged()["subjects"]]
    root = Path(config.pool)
    if not root.is_dir():
        raise UserError(f"references.pool {config.pool}: no such folder; give a folder of pictures or 'packaged'")
    sources = [_folder_source(root, path) for path in _walk(root)]
    if not sources:
        raise UserError(
            f"references.pool {config.pool}: holds no picture; put {', '.join(SUFFIXES)} files into it, "
            "in one sub-folder a category"
        )
    return sources


def package_file(package: str, file: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        if (path := Path(place, file)).is_file():
            return path
    raise UserError(f"packaged picture {package}/{file} is not there; install the project's requirements again")


@cache
def _packaged() -> dict:
    return yaml.safe_load((files("pipeline") / "packaged.yaml").read_text())


def _packaged_source(entry: dict) -> Source:
    package, file = entry["package"], entry["file"]
    inside, outside = (tuple(map(tuple, entry.get(key, []))) for key in ("inside", "outside"))
    path = package_file(package, file)
    return _source(path, f"{package}/{file}", entry["name"], entry["category"], tuple(entry["box"]), inside, outside)


def _walk(root: Path) -> list[Path]:
    """Picture files under ``root``, sorted by relative path; hidden files and folders are passed over."""

    def refuse(error: OSError) -> None:
        raise UserError(
            f"references.pool: folder {error.filename} cannot be read ({error.strerror}); change its permissions"
        ) from error

    found = []
    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(folder, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _folder_source(root: Path, path: Path) -> Source:
    """Category: the first sub-folder or the pool's own name. Name: a .txt beside it or the file's stem."""
    relative = path.relative_to(root)
    folder = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name
    note = path.with_suffix(".txt")
    name = ""
    if note.is_file():
        try:
            with note.open("rb") as file:
                name = " ".join(file.read(400).decode(errors="ignore").split())
        except OSError as error:
            raise UserError(f"{note}: cannot be read ({error.strerror}); change its permissions") from error
    return _source(path, _text(relative.as_posix()), name or _words(path.stem), _words(folder), None)


def _source(
    path: Path,
    source: str,
    name: str,
    category: str,
    box: Box | None,
    inside: tuple[Box, ...] = (),
    outside: tuple[Box, ...] = (),
) -> Source:
    try:
        digest = ""
        if path.is_file():  # never waits at a pipe
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        digest = ""  # make_reference says why, in this picture's own row
    content = json.dumps([source, box, inside, outside, name, category, digest])
    reference_id = hashlib.sha256(content.encode()).hexdigest()[:16]
    subject_id = f"{_slug(category)}/{_slug(name)}"
    return Source(reference_id, subject_id, name, category, source, digest, box, path, inside, outside)


def _text(name: str) -> str:
    """A file name as valid text, whatever bytes it has on the disk."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _words(name: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", _text(name)).split()) or "subject"


def _slug(text: str) -> str:
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-") or hashlib.sha256(text.encode()).hexdigest()[:8]


def make_references(
    sources: Sequence[Source], config: ReferencesConfig
) -> tuple[list[dict], dict[str, dict[str, bytes]], dict[str, float]]:
    """Rows, cut-outs (id -> "cutout.png" -> bytes) and seconds (by id); a bad picture costs only its own row."""
    rows: list[dict] = []
    members: dict[str, dict[str, bytes]] = {}
    seconds: dict[str, float] = {}
    first: dict[tuple[str, Box | None], Source] = {}
    for source in sources:
        began = time.perf_counter()
        try:
            same = first.get((source.sha256, source.box))
            if same is not None:
                message = f"{source.source}: the same picture as {same.source}; remove one"
                raise SampleError("duplicate", message)
            row, files_of = make_reference(source, config)
            first[source.sha256, source.box] = source
            members[source.reference_id] = files_of
        except Exception as error:
            code, message = describe_error(error)
            row = _row(source, "error", error_code=code, error_message=message)
        rows.append(row)
        seconds[source.reference_id] = round(time.perf_counter() - began, 4)
    return rows, members, seconds


def make_reference(source: Source, config: ReferencesConfig) -> tuple[dict, dict[str, bytes]]:
    """The row and the cut-out (member "cutout.png", RGBA, longest side ``config.size``) of one picture."""
    cutout = cut_out(_read(source), source.box, source.inside, source.outside)
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
    return row, {"cutout.png": pictures.encode_png(cutout)}


def _read(source: Source) -> Image.Image:
    if not source.path.is_file():
        raise UserError(f"{source.source}: not a file that can be read; replace or remove it")
    if source.path.stat().st_size > pictures.MAX_BYTES:
        raise UserError(f"{source.source}: more than {pictures.MAX_BYTES} bytes; make it smaller")
    try:
        data = source.path.read_bytes()
    except OSError as error:
        raise UserError(f"{source.source}: cannot be read ({error.strerror}); change its permissions") from error
    return ImageOps.exif_transpose(pictures.decode(data, source.source))


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
    return cv2.GaussianBlur(mask * np.uint8(255), (0, 0), 0.8)


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
    for entry in _packaged()["backgrounds"]:
        path = package_file(entry["package"], entry["file"])
        picture = pictures.decode(path.read_bytes(), path.name).convert("RGB")
        found.append((entry["name"], picture.crop(_pixels(entry["box"], picture.size))))
    return tuple(found)
