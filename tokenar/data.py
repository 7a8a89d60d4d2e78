"""Shards to encoded samples in memory, and the order in which training sees them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.shards import ShardSample, expand_shards, read_shard
from tokenar.text import TextEncoder
from tokenar.tokenizers import ImageTokenizer, picture_tensor


@dataclass
class Encoded:
    """One sample as the model reads it: codes of R references and the background [R+1, N], text [text_tokens, C],
    codes of the picture [N]."""

    sample_id: str
    prompt: str
    sources: Tensor
    text: Tensor
    picture: Tensor

    @property
    def references(self) -> int:
        return len(self.sources) - 1


@dataclass
class Batch:
    """Stacked samples with the same R: sources [B, R+1, N], text [B, text_tokens, C], picture [B, N]."""

    sources: Tensor
    text: Tensor
    picture: Tensor


def read_samples(pattern: str, limit: int | None = None) -> Iterator[ShardSample]:
    """The samples of every shard that ``pattern`` names, in stored order; none at all is a UserError."""
    count = 0
    for url in expand_shards(pattern):
        for sample in read_shard(url):
            if limit is not None and count >= limit:
                return
            count += 1
            yield sample
    if not count:
        raise UserError(f"{pattern}: the shards hold no sample; make them again")


@dataclass
class Resized:
    """One sample's pictures at the tokenizer's size: [R+2, 3, S, S] uint8, references, background, target."""

    sample_id: str
    prompt: str
    pixels: Tensor


def read_resized(pattern: str, size: int, max_references: int) -> list[Resized]:
    """Every sample's pictures reduced to ``size``; read once, small enough to hold."""
    samples = []
    for sample in read_samples(pattern):
        samples.append(Resized(sample.sample_id, sample.prompt, _pixels(sample, size, max_references)))
    return samples


def _pixels(sample: ShardSample, size: int, max_references: int) -> Tensor:
    if len(sample.references) > max_references:
        raise UserError(
            f"sample {sample.sample_id}: {len(sample.references)} references, the model takes up to "
            f"{max_references}; set model.max_references higher or leave the sample out"
        )
    pictures = [*sample.references, sample.background, sample.target]
    stacked = torch.stack([picture_tensor(picture, size) for picture in pictures])
    return ((stacked + 1) * 127.5).round().to(torch.uint8)


def as_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float -1..1."""
    return pixels.float() / 127.5 - 1


def encode(samples: Sequence[Resized], tokenizer: ImageTokenizer, text: TextEncoder) -> list[Encoded]:
    """Codes and text features of every sample."""
    features = text.encode([sample.prompt for sample in samples])
    encoded = []
    for sample, row in zip(samples, features, strict=True):
        codes = tokenizer.encode(as_float(sample.pixels))
        encoded.append(Encoded(sample.sample_id, sample.prompt, codes[:-1], row, codes[-1]))
    return encoded


def encode_sample(sample: ShardSample, tokenizer: ImageTokenizer, text: TextEncoder, max_references: int) -> Encoded:
    """One shard sample as the model reads it."""
    pixels = _pixels(sample, tokenizer.image_size, max_references)
    return encode([Resized(sample.sample_id, sample.prompt, pixels)], tokenizer, text)[0]


def collate(samples: Sequence[Encoded]) -> Batch:
    """Stack samples that have the same number of references."""
    return Batch(
        torch.stack([sample.sources for sample in samples]),
        torch.stack([sample.text for sample in samples]),
        torch.stack([sample.picture for sample in samples]),
    )


def epoch_batches(references: Sequence[int], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch as sample numbers: a pure function of its arguments.

    ``references[i]`` is sample i's number of references; a batch holds one kind only. Every sample comes exactly
    once; the last batch of each kind may be smaller than ``batch``.
    """
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(len(references)))
    generator.shuffle(order)
    batches = []
    for kind in sorted(set(references)):
        same = [number for number in order if references[number] == kind]
        batches += [same[start : start + batch] for start in range(0, len(same), batch)]
    generator.shuffle(batches)
    return batches


def rank_share(batch: Sequence[int], rank: int, world: int) -> list[int]:
    """What one process takes of a batch; the shares of all processes are the batch, each sample once."""
    return list(batch[rank::world])


@dataclass
class Position:
    """Where training stands in the data: the next batch is number ``batch`` of ``epoch``."""

    epoch: int = 0
    batch: int = 0


class Order:
    """Walks epoch after epoch. ``position`` is all there is to save and restore."""

    def __init__(self, references: Sequence[int], batch: int, seed: int, position: Position | None = None):
        self.references, self.batch, self.seed = references, batch, seed
        self.position = position or Position()
        self._epoch = -1
        self._batches: list[list[int]] = []

    def next(self) -> list[int]:
        """The next batch as sample numbers."""
        if self._epoch != self.position.epoch:
            self._epoch = self.position.epoch
            self._batches = epoch_batches(self.references, self.batch, self.seed, self._epoch)
        chosen = self._batches[self.position.batch]
        self.position.batch += 1
        if self.position.batch == len(self._batches):
            self.position = Position(self.position.epoch + 1, 0)
        return chosen
