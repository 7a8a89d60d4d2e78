"""What an evaluation is made from: samples as they lie in their shards, and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from data_schemas.errors import UserError
from data_schemas.shards import ShardSample, decode_sample, expand_shards, read_members


@dataclass(frozen=True)
class Stored:
    """Sample ``number`` as it lies in its shard, not decoded."""

    number: int
    sample_id: str
    members: Mapping[str, bytes]
    source: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its members."""
        digest = hashlib.sha256()
        for name, content in sorted(self.members.items()):
            digest.update(f"{name} {len(content)} ".encode() + content)
        return digest.hexdigest()

    def decode(self) -> ShardSample:
        """The sample; UserError naming the member that is missing or damaged."""
        return decode_sample(self.sample_id, dict(self.members), self.source)


def stored_samples(shards: str, limit: int | None = None) -> Iterator[Stored]:
    """The samples of every shard that the glob names, in stored order; none at all, or one twice, is a UserError."""
    seen: set[str] = set()
    for url in expand_shards(shards):
        for sample_id, members in read_members(url):
            if limit is not None and len(seen) >= limit:
                return
            if sample_id in seen:
                raise UserError(f"{url}: sample {sample_id} is there twice; evaluate one dataset at a time")
            yield Stored(len(seen), sample_id, members, url)
            seen.add(sample_id)
    if not seen:
        raise UserError(f"{shards}: the shards hold no sample; make them again")
