"""Shards to encoded samples, the order in which training sees them, and each process's share of a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.shards import ShardSample, expand_shards, read_shard
from tokenar.encoders.patches import ImageTokenizer, picture_tensor
from tokenar.encoders.teacher import Teacher
from tokenar.encoders.text import TextEncoder


@dataclass
class Encoded:
    """One sample as the model reads it: codes of R references and the background [R+1, N], text [text_tokens, C],
    codes of the picture [N], the text's own positions [text_tokens] bool, and what the teacher sees [P, 768]."""

    sample_id: str
    prompt: str
    sources: Tensor
    text: Tensor
    picture: Tensor
    text_mask: Tensor
    teacher: Tensor | None = None

    @property
    def references(self) -> int:
        return len(self.sources) - 1


@dataclass
class Batch:
    """Stacked samples with the same R: sources [B, R+1, N], text [B, text_tokens, C], picture [B, N],
    text_mask [B, text_tokens] bool, teacher [B, P, 768] or None."""

    sources: Tensor
    text: Tensor
    picture: Tensor
    text_mask: Tensor
    teacher: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """On a device; from pinned memory without waiting for it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """In memory that a GPU copies from by itself."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        teacher = None if self.teacher is None else change(self.teacher)
        return Batch(change(self.sources), change(self.text), change(self.picture), change(self.text_mask), teacher)


class Samples(Protocol):
    """What there is to train on: samples by number, each with its number of references and its id."""

    references: list[int]
    sample_ids: list[str]

    def read(self, number: int, epoch: int | None = None) -> Encoded:
        """Sample ``number`` as it comes in an epoch, or as it is."""
        ...


class InMemory:
    """Samples as they are and in varied copies, of which every epoch shows another."""

    def __init__(self, copies: list[list[Encoded]]):
        self.copies = copies
        self.references = [sample.references for sample in copies[0]]
        self.sample_ids = [sample.sample_id for sample in copies[0]]

    def read(self, number: int, epoch: int | None = None) -> Encoded:
        return self.copies[0 if epoch is None else (number + epoch) % len(self.copies)][number]


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
    return [_resized(sample, size, max_references) for sample in read_samples(pattern)]


def pixels_of(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """RGB pictures as [n, 3, size, size] uint8."""
    stacked = torch.stack([picture_tensor(picture, size) for picture in pictures])
    return ((stacked + 1) * 127.5).round().to(torch.uint8)


def _resized(sample: ShardSample, size: int, max_references: int) -> Resized:
    if len(sample.references) > max_references:
        raise UserError(
            f"sample {sample.sample_id}: {len(sample.references)} references, the model takes up to "
            f"{max_references}; set model.max_references higher or leave the sample out"
        )
    pictures = [*sample.references, sample.background, sample.target]
    return Resized(sample.sample_id, sample.prompt, pixels_of(pictures, size))


def vary(sample: Resized, unit: int, seed: int) -> Resized:
    """The same sample in other colours and at another place: the same bytes for the same seed.

    All pictures of the sample get the same exchange of channels, gain and, half the time, inversion, so that each
    subject still looks like its reference; references, and target with background, are shifted round by a whole
    number of tokens (``unit`` pixels). With few samples a model remembers the pictures otherwise; what stays true
    under all of this is that the target is put together from the sources.
    """
    generator = torch.Generator().manual_seed(seed)
    channels = torch.randperm(3, generator=generator)
    gain = 0.6 + 0.4 * torch.rand(1, 3, 1, 1, generator=generator)
    pixels = sample.pixels.float()[:, channels] * gain
    if torch.rand((), generator=generator) < 0.5:
        pixels = 255 - pixels
    places = sample.pixels.shape[-1] // unit
    shifts = torch.randint(places, (len(pixels) - 1, 2), generator=generator) * unit
    shifts = torch.cat([shifts, shifts[-1:]])  # background and target, the last two, move together
    moved = [torch.roll(p, s.tolist(), (1, 2)) for p, s in zip(pixels, shifts, strict=True)]
    return Resized(sample.sample_id, sample.prompt, torch.stack(moved).round().to(torch.uint8))


def variations(samples: Sequence[Resized], count: int, unit: int, seed: int) -> list[list[Resized]]:
    """The samples as they are, followed by ``count`` varied copies of all of them."""

    def draw(copy: int, number: int) -> int:
        return random.Random(f"vary/{seed}/{copy}/{number}").getrandbits(62)

    varied = [[vary(sample, unit, draw(copy, n)) for n, sample in enumerate(samples)] for copy in range(count)]
    return [list(samples), *varied]


def as_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float -1..1."""
    return pixels.float() / 127.5 - 1


def encode_resized(
    samples: Sequence[Resized], tokenizer: ImageTokenizer, text: TextEncoder, teacher: Teacher | None = None
) -> list[Encoded]:
    """Codes and text features of every sample, and what the teacher sees in its target."""
    features, masks = text.encode_with_mask([sample.prompt for sample in samples])
    lengths = [len(sample.pixels) for sample in samples]
    coded = tokenizer.encode(as_float(torch.cat([sample.pixels for sample in samples]))).split(lengths)
    seen: Sequence[Tensor | None] = [None] * len(samples)
    if teacher is not None:
        seen = list(teacher.encode(as_float(torch.stack([sample.pixels[-1] for sample in samples]))))
    return [
        Encoded(sample.sample_id, sample.prompt, codes[:-1], row.float(), codes[-1], mask, target)
        for sample, row, mask, codes, target in zip(samples, features, masks, coded, seen, strict=True)
    ]


def encode_sample(sample: ShardSample, tokenizer: ImageTokenizer, text: TextEncoder, max_references: int) -> Encoded:
    """One shard sample as the model reads it."""
    return encode_resized([_resized(sample, tokenizer.image_size, max_references)], tokenizer, text)[0]


def collate(samples: Sequence[Encoded]) -> Batch:
    """Stack samples that have the same number of references."""
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    return Batch(
        torch.stack([sample.sources for sample in samples]),
        torch.stack([sample.text for sample in samples]),
        torch.stack([sample.picture for sample in samples]),
        torch.stack([sample.text_mask for sample in samples]),
        torch.stack(teachers) if teachers else None,
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


def rank_parts(count: int, batch: int, rank: int, world: int, accumulation: int) -> list[list[int]]:
    """One process's share of a batch of ``count`` samples in parts, as places in the batch.

    Every process has the same number of parts, as they compute together; one that is short of samples has empty
    parts. A part has at most as many samples as in a full batch of ``batch`` cut by processes and ``accumulation``.
    """
    size = -(-batch // (world * accumulation))
    mine = rank_share(range(count), rank, world)
    rounds = -(-len(range(0, count, world)) // size)
    return [mine[number * size : (number + 1) * size] for number in range(rounds)]


@dataclass(frozen=True)
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
        batch = self.position.batch + 1
        whole = batch == len(self._batches)
        self.position = Position(self.position.epoch + 1, 0) if whole else Position(self.position.epoch, batch)
        return chosen
