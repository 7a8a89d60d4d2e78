"""The playground's examples: the first samples of a run's shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from data_schemas.commands import say
from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from data_schemas.shards import ShardSample, decode_sample, expand_shards, read_distinct
from tokenar.attention.maps import checked_boxes

EXAMPLES = 12
THUMBNAIL = 256
"""Longest side of an example's picture in the list, in pixels."""


@dataclass(frozen=True)
class Example:
    """A sample as the shard holds it. ``thumbnail`` is its true picture."""

    prompt: str
    thumbnail: Image.Image
    shard: str
    sample_id: str
    members: dict[str, bytes]

    def opened(self) -> ShardSample:
        return decode_sample(self.sample_id, self.members, self.shard)


def read_examples(pattern: str, slots: int) -> list[Example]:
    """The first samples of the shards that have 1 to ``slots`` references.

    A sample that cannot be read is named on stderr and left out. UserError if there is none.
    """
    found: list[Example] = []
    samples = _readable(expand_shards(pattern))
    while len(found) < EXAMPLES and (sample := next(samples, None)) is not None:
        if len(sample[1].references) <= slots:
            found.append(_example(*sample))
    if not found:
        raise UserError(f"--shards {pattern}: no sample of 1 to {slots} references there; give other shards")
    return found


def _example(url: str, sample: ShardSample, members: dict[str, bytes]) -> Example:
    thumbnail = sample.target.copy()
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return Example(one_line(sample.prompt, 300), thumbnail, url, sample.sample_id, members)


def _readable(shards: list[str]) -> Iterator[tuple[str, ShardSample, dict[str, bytes]]]:
    for shard in shards:
        members_of = read_distinct([shard])
        while True:
            try:
                entry = next(members_of, None)
                if entry is None:
                    break
                url, sample_id, members = entry
                sample = decode_sample(sample_id, members, url)
                checked_boxes(sample.info, len(sample.references), sample_id)
                yield url, sample, members
            except UserError as error:  # after a broken tar there is no next sample, and the loop ends
                say(f"not an example: {error}")
