"""The border between the two halves: what one sample in a WebDataset shard holds.

A shard is an uncompressed tar. A sample is a run of members that share the part of their name before the first
dot, the sample id:

    <id>.reference_0.png        first reference, RGB, already composited on white
    <id>.reference_0.rgba.png   the same reference with its alpha
    <id>.reference_1.png ...    further references, numbered without gaps
    <id>.background.png         target with the foreground blacked out, RGB
    <id>.foreground.png         target with everything but the foreground transparent, RGBA
    <id>.target.png             the picture to be generated, RGB
    <id>.alpha.png              the foreground matte, L (0 background .. 255 foreground)
    <id>.prompt.txt             the prompt, UTF-8
    <id>.json                   subjects, relation, boxes, scores, seed, split, schema_version
"""

from __future__ import annotations

import glob
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import fsspec
from PIL import Image

from data_schemas import pictures
from data_schemas.errors import UserError

SHARD_VERSION = 1
MAX_REFERENCES = 8


@dataclass
class ShardSample:
    """One sample as Python objects. ``references_rgba[i]`` and ``references[i]`` show the same subject."""

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
    """The members of one sample, by name without the id; the same sample gives the same bytes."""
    members: dict[str, bytes] = {}
    for i, (flat, rgba) in enumerate(zip(sample.references, sample.references_rgba, strict=True)):
        members[f"reference_{i}.png"] = pictures.encode_png(flat)
        members[f"reference_{i}.rgba.png"] = pictures.encode_png(rgba)
    for name in ("background", "foreground", "target", "alpha"):
        members[f"{name}.png"] = pictures.encode_png(getattr(sample, name))
    return members | encode_words(sample.prompt, sample.info)


def encode_words(prompt: str, info: dict) -> dict[str, bytes]:
    """The members of a sample that are no pictures."""
    stated = {**info, "schema_version": SHARD_VERSION}
    text = json.dumps(stated, sort_keys=True, ensure_ascii=False)
    return {"prompt.txt": prompt.encode(), "json": text.encode()}


def decode_sample(sample_id: str, members: dict[str, bytes], source: str) -> ShardSample:
    """The inverse of encode_sample. Raises UserError naming ``source``, the sample and the member at fault."""
    where = f"{source}: sample {sample_id}"

    def member(name: str) -> bytes:
        if name not in members:
            raise UserError(f"{where}: member {name!r} is missing; make the shard again")
        return members[name]

    def picture(name: str) -> Image.Image:
        return pictures.decode(member(name), f"{where}: member {name!r}")

    try:
        info = json.loads(member("json"))
        prompt = member("prompt.txt").decode()
    except ValueError as error:
        raise UserError(f"{where}: prompt or json cannot be read ({error}); make the shard again") from error
    if not isinstance(info, dict) or info.get("schema_version") != SHARD_VERSION:
        raise UserError(f"{where}: not a sample of shard version {SHARD_VERSION}; make the shard again")
    count = 0
    while f"reference_{count}.png" in members:
        count += 1
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


def read_members(url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (sample id, members) of one tar in stored order. A shard cut short or damaged raises UserError."""
    current: str | None = None
    members: dict[str, bytes] = {}
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                if not entry.isfile():
                    continue
                sample_id, _, name = entry.name.rpartition("/")[2].partition(".")
                if sample_id != current:
                    if current is not None:
                        yield current, members
                    current, members = sample_id, {}
                stream = tar.extractfile(entry)
                assert stream is not None
                members[name] = stream.read()
                if len(members[name]) != entry.size:
                    raise tarfile.ReadError("unexpected end of data")
            # A whole tar ends in a zero block; a file cut exactly between two members does not.
            file.seek(tar.offset)
            if not file.read(1):
                raise tarfile.ReadError("no end-of-archive mark")
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such shard") from error
    except tarfile.TarError as error:
        raise UserError(f"{url}: the shard is cut short or damaged ({error}); make it again") from error
    if current is not None:
        yield current, members


def sample_ids(url: str) -> list[str]:
    """The ids of a tar's samples in stored order, from its headers alone; damage there raises UserError."""
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return list(dict.fromkeys(e.name.rpartition("/")[2].partition(".")[0] for e in tar if e.isfile()))
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such shard") from error
    except tarfile.TarError as error:
        raise UserError(f"{url}: the shard is cut short or damaged ({error}); make it again") from error


def read_shard(url: str) -> Iterator[ShardSample]:
    """Yield every sample of one shard in stored order, decoded and checked."""
    for sample_id, members in read_members(url):
        yield decode_sample(sample_id, members, url)


def expand_shards(pattern: str) -> list[str]:
    """The shards a glob such as ``data/train-*.tar`` (disk or bucket) stands for, sorted; none is an error."""
    if "://" in pattern:
        fs, path = fsspec.core.url_to_fs(pattern)
        found = [fs.unstrip_protocol(match) for match in fs.glob(path)]
    else:
        found = glob.glob(pattern)
    if not found:
        raise UserError(f"{pattern}: no shard matches; give a glob such as 'runs/quickstart/dataset/train-*.tar'")
    return sorted(found)
