"""Copies among reference pictures: equal ones, of which one is used, and near-copies, all of which are.

Near-copies are the same picture at another size or quality, cropped, mirrored or recoloured. They show one subject
under several names. A plan keeps all of them in one split and never pairs two of them.

Three marks tell them: a perceptual hash of the cut-out on white, its colours in 8 x 8 cells, and its EfficientNet
features. The limits were chosen on 796 pictures (packaged, generated, and of Debian's Tux Paint stamps) and seven kinds
of copies of them: recompressed, halved, brighter, paler, more colourful, cropped by 3 %, turned by 2 degrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.identity.encoders import encode

MARKS = ("phash", "colours", "features")
"""The columns of a reference that tell near-copies; null where there is no cut-out."""
HASH_SIDE, CELLS = 16, 8
BLOCK = 2048
"""Pictures compared at once; the comparison of two blocks takes some 50 MB."""

SAME_FEATURES = 0.95
"""Pictures whose features have at least this cosine are near-copies, whatever their colours: mirrored, recoloured."""
LIKE_FEATURES, LIKE_COLOURS = 0.9, 15.0
"""So are those with this cosine whose colours differ by at most so much on average (of 255): cropped, turned."""
HASH_BITS, SAME_COLOURS = 40, 10.0
"""So are those whose hashes differ in at most so many of 256 bits and whose colours differ as little: recompressed."""


def marks_of(picture: Image.Image) -> dict[str, Any]:
    """The values of MARKS for an RGB picture of a subject on white."""
    cells = picture.resize((CELLS, CELLS), Image.Resampling.BOX)
    return {
        "phash": hash_of(picture),
        "colours": np.asarray(cells).tobytes(),
        "features": encode(picture)[0].astype(np.float16).tobytes(),
    }


def hash_of(picture: Image.Image) -> str:
    """The perceptual hash of a picture, 256 bits as hex digits."""
    return str(imagehash.phash(picture, HASH_SIDE))


def near_hashes(some: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs of positions whose hashes differ in at most HASH_BITS bits. Unrelated targets differ in about 100."""
    one, two = _bits(some), _bits(others)
    found = []
    for i in range(0, len(one), BLOCK):
        for j in range(0, len(two), BLOCK):
            near = _differing(one[i : i + BLOCK], two[j : j + BLOCK]) <= HASH_BITS
            found += [(i + int(a), j + int(b)) for a, b in np.argwhere(near)]
    return found


def _bits(hashes: Sequence[str]) -> np.ndarray:
    return np.array([imagehash.hex_to_hash(h).hash.ravel() for h in hashes], np.float32).reshape(-1, HASH_SIDE**2)


def _differing(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """In how many bits each of ``one`` [A, bits] differs from each of ``two`` [B, bits]: [A, B]."""
    return one @ (1 - two.T) + (1 - one) @ two.T


def mark_duplicates(rows: Sequence[dict]) -> list[dict]:
    """The rows; each usable row that repeats an earlier one becomes an error ``duplicate`` that names the first.

    Two pictures are the same if their decoded pixels, masks and boxes are equal, whatever files they come from. Rows
    that are already marked are compared again, so parts that were marked separately can be marked together.
    """
    first: dict[tuple, str] = {}
    marked = []
    for row in rows:
        if row["status"] == "ok" or row["error_code"] == "duplicate":
            key = (row["pixels_sha256"], row["box"] and tuple(row["box"]))
            if key in first:
                message = f"{row['source']}: the same picture as {first[key]}; remove one"
                nothing = dict.fromkeys(("width", "height", "area_share", *MARKS))
                row = row | nothing | {"status": "error", "error_code": "duplicate", "error_message": message}
            else:
                first[key] = row["source"]
        marked.append(row)
    return marked


def near_pairs(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    """The pairs of positions in ``rows`` (of the table of references) whose pictures are near-copies."""
    marked = [k for k, row in enumerate(rows) if row.get("phash") is not None]
    if not marked:
        return
    hashes = _bits([rows[k]["phash"] for k in marked])
    colours = np.array([np.frombuffer(rows[k]["colours"], np.uint8) for k in marked], np.float32)
    features = np.array([np.frombuffer(rows[k]["features"], np.float16) for k in marked], np.float32)
    for i in range(0, len(marked), BLOCK):
        for j in range(i, len(marked), BLOCK):
            one, two = slice(i, i + BLOCK), slice(j, j + BLOCK)
            cosine = features[one] @ features[two].T
            bits = _differing(hashes[one], hashes[two])
            for a, b in np.argwhere((cosine >= LIKE_FEATURES) | (bits <= HASH_BITS)):
                apart = np.abs(colours[i + a] - colours[j + b]).mean()
                near = cosine[a, b] >= SAME_FEATURES or (cosine[a, b] >= LIKE_FEATURES and apart <= LIKE_COLOURS)
                if i + a < j + b and (near or (bits[a, b] <= HASH_BITS and apart <= SAME_COLOURS)):
                    yield marked[i + a], marked[j + b]


def likeness(some: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> float | None:
    """The largest cosine between features of references of both sides; None if a side is empty."""
    one, two = (
        np.array([np.frombuffer(row["features"], np.float16) for row in rows if row.get("features")], np.float32)
        for rows in (some, others)
    )
    if not len(one) or not len(two):
        return None
    return max(float((one[k : k + BLOCK] @ two.T).max()) for k in range(0, len(one), BLOCK))


def groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Subject id -> its group: the smallest id of all subjects that near-copies connect with it, itself included."""
    subjects = sorted({row["subject_id"] for row in rows})
    number = {subject: k for k, subject in enumerate(subjects)}
    pairs = [(number[rows[a]["subject_id"]], number[rows[b]["subject_id"]]) for a, b in near_pairs(rows)]
    labels = connected(pairs, len(subjects))
    smallest = {label: subject for subject, label in zip(subjects[::-1], labels[::-1], strict=True)}
    return {subject: smallest[label] for subject, label in zip(subjects, labels, strict=True)}


def connected(pairs: Sequence[tuple[int, int]], count: int) -> list[int]:
    """A label for each of ``count`` things, the same for those that ``pairs`` connect."""
    ends = np.array(pairs, int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].tolist() if count else []
