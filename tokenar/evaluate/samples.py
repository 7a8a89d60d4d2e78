"""The samples of an evaluation, read from their shards and decoded only when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from data_schemas.errors import UserError
from data_schemas.shards import ShardSample, decode_sample, expand_shards, read_distinct, reference_count


@dataclass(frozen=True)
class Stored:
    """A sample that is not decoded yet: the bytes of its members by name, and the shard (``source``) they are from."""

    number: int
    sample_id: str
    members: Mapping[str, bytes]
    source: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and contents of its members."""
        digest = hashlib.sha256()
        for name, content in sorted(self.members.items()):
            digest.update(f"{name} {len(content)} ".encode() + content)
        return digest.hexdigest()

    @cached_property
    def references(self) -> int:
        """The number of its references."""
        return reference_count(self.members)

    def decode(self) -> ShardSample:
        """Decode the sample. UserError naming the member that is missing or damaged."""
        return decode_sample(self.sample_id, dict(self.members), self.source)


def stored_samples(shards: str | Sequence[str], limit: int | None = None) -> Iterator[Stored]:
    """The samples of all shards that a glob, or several, match, in stored order, numbered from 0.

    UserError if there is no sample, or if two have the same id.
    """
    number = -1
    for number, (url, sample_id, members) in enumerate(islice(read_distinct(expand_shards(shards)), limit)):
        yield Stored(number, sample_id, members, url)
    if number < 0 and limit != 0:
        raise UserError(f"{told(shards)}: the shards hold no sample; make them again")


def told(shards: str | Sequence[str]) -> str:
    """The globs in words."""
    return shards if isinstance(shards, str) else ", ".join(shards)
