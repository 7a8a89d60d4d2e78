"""The format of a sample in a WebDataset shard, which is all that curation and training share.

A shard is an uncompressed tar. The members of a sample stand side by side in it. They share their folder and the part
of their file name before the first dot, and these two are the sample id (``0001``, ``x/0001``):

    <id>.reference_0.png        first reference, RGB, already composited on white
    <id>.reference_0.rgba.png   the same reference with its alpha
    <id>.reference_1.png ...    further references, numbered without gaps
    <id>.background.png         target with the foreground blacked out, RGB
    <id>.foreground.png         target with everything but the foreground transparent, RGBA
    <id>.target.png             the picture to be generated, RGB
    <id>.alpha.png              the foreground matte, L (0 background .. 255 foreground)
    <id>.prompt.txt             the prompt, UTF-8
    <id>.json                   subjects, relation, boxes, scores, seed, split, schema_version

Hidden members that macOS adds to archives (``._0001.target.png``, ``__MACOSX/...``) are ignored.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.documents import parse_json
from data_schemas.io.tars import expand_shards, file_name, read_members, sample_ids
from data_schemas.io.text import one_line

__all__ = [
    "MAX_REFERENCES", "SHARD_VERSION", "ShardSample", "check_distinct", "decode_sample", "encode_sample",
    "expand_shards", "file_name", "read_distinct", "read_members", "read_shard", "reference_count",
    "sample_ids",
]  # fmt: skip

SHARD_VERSION = 1
MAX_REFERENCES = 8


@dataclass
class ShardSample:
    """One decoded sample. ``references[i]`` and ``references_rgba[i]`` show the same subject, on white and cut out."""

    sample_id: str
    references: list[Image.Image]
    references_rgba: list[Image.Image]
    background: Image.Image
    foreground: Image.Image
    target: Image.Image
    alpha: Image.Image
    prompt: str
    info: dict = field(default_factory=dict)


def encode_sample(sample: ShardSample) -> dict[str, bytes]:
    """The members of one sample by name without the id. The same sample always gives the same bytes."""
    members: dict[str, bytes] = {}
    for i, (flat, rgba) in enumerate(zip(sample.references, sample.references_rgba, strict=True)):
        members[f"reference_{i}.png"] = pictures.encode_png(flat)
        members[f"reference_{i}.rgba.png"] = pictures.encode_png(rgba)
    for name in ("background", "foreground", "target", "alpha"):
        members[f"{name}.png"] = pictures.encode_png(getattr(sample, name))
    return members | encode_words(sample.prompt, sample.info)


def encode_words(prompt: str, info: dict) -> dict[str, bytes]:
    """The two members of a sample that are text: prompt.txt and json."""
    stated = {**info, "schema_version": SHARD_VERSION}
    text = json.dumps(stated, sort_keys=True, ensure_ascii=False)
    return {"prompt.txt": prompt.encode(), "json": text.encode()}


def reference_count(members: Mapping[str, bytes]) -> int:
    """The number of references among a sample's members, which are numbered without gaps."""
    return next(k for k in itertools.count() if f"reference_{k}.png" not in members)


def decode_sample(sample_id: str, members: dict[str, bytes], source: str) -> ShardSample:
    """Decode and check the members of one sample; the inverse of ``encode_sample``.

    Raises UserError that names ``source`` (the shard), the sample and the member.
    """
    where = f"{source}: sample {sample_id}"

    def member(name: str) -> bytes:
        if name not in members:
            raise UserError(f"{where}: member {name!r} is missing; make the shard again")
        return members[name]

    def picture(name: str) -> Image.Image:
        return pictures.decode(member(name), f"{where}: member {name!r}")

    try:
        prompt = member("prompt.txt").decode()
        text = member("json").decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: prompt or json cannot be read ({one_line(error)}); make the shard again") from error
    info = parse_json(text, f"{where}: member 'json'")
    if not isinstance(info, dict) or info.get("schema_version") != SHARD_VERSION:
        raise UserError(f"{where}: not a sample of shard version {SHARD_VERSION}; make the shard again")
    count = reference_count(members)
    if not 1 <= count <= MAX_REFERENCES:
        raise UserError(f"{where}: {count} references, expected 1 to {MAX_REFERENCES}")
    return ShardSample(
        sample_id=sample_id,
        references=[pictures.on_white(picture(f"reference_{i}.png")) for i in range(count)],
        references_rgba=[picture(f"reference_{i}.rgba.png").convert("RGBA") for i in range(count)],
        background=picture("background.png").convert("RGB"),
        foreground=picture("foreground.png").convert("RGBA"),
        target=picture("target.png").convert("RGB"),
        alpha=picture("alpha.png").convert("L"),
        prompt=prompt,
        info=info,
    )


def read_shard(url: str) -> Iterator[ShardSample]:
    """All samples of one shard in stored order, decoded and checked."""
    for sample_id, members in read_members(url):
        yield decode_sample(sample_id, members, url)


def read_distinct(urls: Iterable[str]) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """(shard, sample id, members) of several shards in stored order.

    Raises UserError if two shards hold the same id.
    """
    shard_of: dict[str, str] = {}
    for url in urls:
        for sample_id, members in read_members(url):
            check_distinct(sample_id, url, shard_of)
            yield url, sample_id, members


def check_distinct(sample_id: str, url: str, shard_of: dict[str, str]) -> None:
    """Record in ``shard_of`` which shard holds a sample. Raises UserError if another shard holds it too."""
    if (other := shard_of.setdefault(sample_id, url)) != url:
        raise UserError(f"{url}: sample {sample_id} is there twice, in {other} too; give one dataset at a time")
