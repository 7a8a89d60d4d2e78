"""From shards to encoded samples, the order in which training reads them, and each process's part of a batch.

Shape legend: B batch, R references, N tokens an image, C text width, P teacher patches, S side of an image in pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.shards import ShardSample, expand_shards, read_shard
from tokenar.data.mixing import Mix
from tokenar.encoders.patches import ImageTokenizer, picture_tensor
from tokenar.encoders.teacher import Teacher
from tokenar.encoders.text import TextEncoder


@dataclass
class Encoded:
    """One sample as the model reads it.

    sources [R+1, N] int64: codes of the references, then of the background
    text [text_tokens, C] float32: text features
    picture [N] int64: codes of the target image
    text_mask [text_tokens] bool: False at padding
    teacher [P, 768] float32: the teacher's features of the target image, if there is a teacher
    instruct: number of the set of instruct tokens, for a model in "special" mode; None: the picture's
    """

    sample_id: str
    prompt: str
    sources: Tensor
    text: Tensor
    picture: Tensor
    text_mask: Tensor
    teacher: Tensor | None = None
    instruct: int | None = None

    @property
    def references(self) -> int:
        """Number of references (R)."""
        return len(self.sources) - 1


@dataclass
class Batch:
    """Samples with the same number of references, stacked: sources [B, R+1, N], text [B, text_tokens, C],
    picture [B, N], text_mask [B, text_tokens] bool, teacher [B, P, 768] or None, instruct [B] int64 or None. A model
    that reads no background has sources [B, R, N]."""

    sources: Tensor
    text: Tensor
    picture: Tensor
    text_mask: Tensor
    teacher: Tensor | None = None
    instruct: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; a copy from pinned memory is not waited for."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in pinned memory, from which a GPU can copy while the host does other work."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})


class Samples(Protocol):
    """A training set: samples by number. ``references`` and ``sample_ids`` have an entry for each sample."""

    references: list[int]
    sample_ids: list[str]

    def read(self, number: int, epoch: int | None = None) -> Encoded:
        """Sample ``number`` as varied for an epoch, or unchanged without one."""
        ...


class InMemory:
    """A training set in memory, in several versions: ``versions[0]`` has the samples unchanged, the others have varied
    copies of the same samples. Each epoch reads another version of a sample."""

    def __init__(self, versions: list[list[Encoded]]):
        self.versions = versions
        self.references = [sample.references for sample in versions[0]]
        self.sample_ids = [sample.sample_id for sample in versions[0]]

    def read(self, number: int, epoch: int | None = None) -> Encoded:
        return self.versions[0 if epoch is None else (number + epoch) % len(self.versions)][number]


class Joined:
    """Several data sets as one, numbered one after the other."""

    def __init__(self, sets: Sequence[Samples]):
        self.sets = sets
        self.references = [count for samples in sets for count in samples.references]
        self.sample_ids = [sample_id for samples in sets for sample_id in samples.sample_ids]

    def read(self, number: int, epoch: int | None = None) -> Encoded:
        """Sample ``number`` as its set gives it."""
        for samples in self.sets:
            if number < len(samples.references):
                return samples.read(number, epoch)
            number -= len(samples.references)
        raise IndexError(number)


def read_samples(pattern: str, limit: int | None = None) -> Iterator[ShardSample]:
    """The samples of all shards that the glob ``pattern`` names, in stored order; UserError if there are none."""
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
    """One sample with its images at the tokenizer's size: pixels [R+2, 3, S, S] uint8 of references, background and
    target."""

    sample_id: str
    prompt: str
    pixels: Tensor


def read_resized(pattern: str, size: int, max_references: int, only: Collection[str] | None = None) -> list[Resized]:
    """All samples of the shards, or those with the ids ``only``, with their images resized to ``size`` pixels, small
    enough to keep in memory.

    UserError if a sample has more than ``max_references`` references, or if an id of ``only`` is in no shard.
    """
    found = read_samples(pattern)
    if only is None:
        return [_resized(sample, size, max_references) for sample in found]
    chosen = [_resized(sample, size, max_references) for sample in found if sample.sample_id in only]
    if missing := set(only) - {sample.sample_id for sample in chosen}:
        raise UserError(f"{pattern}: no sample {min(missing)!r}, nor {len(missing) - 1} others; mend the list of ids")
    return chosen


def pixels_of(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """RGB images resized to ``size`` pixels, [n, 3, size, size] uint8."""
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
    """A varied copy of a sample, with other colours and shifted images. The same seed gives the same bytes.

    With few samples a model would learn the images by heart. The variation keeps only what it should learn: that the
    target is composed of the sources. All images of the sample get the same permutation of colour channels, the same
    gain and, half the time, inversion, so that each subject still looks like its reference. Each image is shifted
    cyclically by a whole number of tokens (``unit`` pixels); target and background are shifted together.
    """
    generator = torch.Generator().manual_seed(seed)
    channels = torch.randperm(3, generator=generator)
    gain = 0.6 + 0.4 * torch.rand(1, 3, 1, 1, generator=generator)
    pixels = sample.pixels.float()[:, channels] * gain
    if torch.rand((), generator=generator) < 0.5:
        pixels = 255 - pixels
    tokens = sample.pixels.shape[-1] // unit
    shifts = torch.randint(tokens, (len(pixels) - 1, 2), generator=generator) * unit
    shifts = torch.cat([shifts, shifts[-1:]])  # background and target, the last two, move together
    moved = [torch.roll(p, s.tolist(), (1, 2)) for p, s in zip(pixels, shifts, strict=True)]
    return Resized(sample.sample_id, sample.prompt, torch.stack(moved).round().to(torch.uint8))


def variations(samples: Sequence[Resized], count: int, unit: int, seed: int) -> list[list[Resized]]:
    """``count + 1`` versions of the samples: first unchanged, then ``count`` varied copies of all of them."""

    def copy_seed(copy: int, number: int) -> int:
        return random.Random(f"vary/{seed}/{copy}/{number}").getrandbits(62)

    varied = [[vary(sample, unit, copy_seed(copy, n)) for n, sample in enumerate(samples)] for copy in range(count)]
    return [list(samples), *varied]


def as_float(pixels: Tensor) -> Tensor:
    """uint8 in 0..255 -> float in -1..1."""
    return pixels.float() / 127.5 - 1


def encode_resized(
    samples: Sequence[Resized], tokenizer: ImageTokenizer, text: TextEncoder, teacher: Teacher | None = None
) -> list[Encoded]:
    """Encode samples: their images, their prompts and, with a teacher, the teacher's features of their targets."""
    features, masks = text.encode_with_mask([sample.prompt for sample in samples])
    lengths = [len(sample.pixels) for sample in samples]
    coded = tokenizer.encode(as_float(torch.cat([sample.pixels for sample in samples]))).split(lengths)
    teacher_features: Sequence[Tensor | None] = [None] * len(samples)
    if teacher is not None:
        teacher_features = list(teacher.encode(as_float(torch.stack([sample.pixels[-1] for sample in samples]))))
    return [
        Encoded(sample.sample_id, sample.prompt, codes[:-1], row.float(), codes[-1], mask, seen)
        for sample, row, mask, codes, seen in zip(samples, features, masks, coded, teacher_features, strict=True)
    ]


def encode_sample(sample: ShardSample, tokenizer: ImageTokenizer, text: TextEncoder, max_references: int) -> Encoded:
    """Encode one sample of a shard; UserError if it has more than ``max_references`` references."""
    return encode_resized([_resized(sample, tokenizer.image_size, max_references)], tokenizer, text)[0]


def collate(samples: Sequence[Encoded], background: bool = True) -> Batch:
    """Stack samples to a batch; all must have the same number of references.

    ``background=False`` leaves the backgrounds out, for a model that reads none.
    """
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    sets = [sample.instruct for sample in samples if sample.instruct is not None]
    return Batch(
        torch.stack([sample.sources if background else sample.sources[:-1] for sample in samples]),
        torch.stack([sample.text for sample in samples]),
        torch.stack([sample.picture for sample in samples]),
        torch.stack([sample.text_mask for sample in samples]),
        torch.stack(teachers) if teachers else None,
        torch.tensor(sets) if sets else None,
    )


def epoch_batches(
    references: Sequence[int], batch: int, seed: int, epoch: int, mix: Mix | None = None
) -> list[list[int]]:
    """The batches of one epoch, each a list of sample numbers. The result depends on the arguments only.

    ``references[i]`` is the number of references of sample i, and all samples of a batch have the same number. Every
    sample comes once, or with ``mix`` as often as that says. The last batch of each number of references may be smaller
    than ``batch``.
    """
    generator = random.Random(f"{seed}/{epoch}")
    if mix is None:
        order = list(range(len(references)))
        generator.shuffle(order)
    else:
        order = mix.order(seed, epoch)
    batches = []
    for count in sorted(set(references)):
        same = [number for number in order if references[number] == count]
        batches += [same[start : start + batch] for start in range(0, len(same), batch)]
    generator.shuffle(batches)
    return batches


def rank_share(batch: Sequence[int], rank: int, world: int) -> list[int]:
    """The samples of a batch that the process of this rank takes: every ``world``-th one."""
    return list(batch[rank::world])


def rank_parts(count: int, batch: int, rank: int, world: int, accumulation: int) -> list[list[int]]:
    """One process's share of a batch, cut into parts for gradient accumulation; each part is a list of indices into
    the batch.

    ``count`` is the number of samples of this batch, ``batch`` that of a full one. A part has at most
    batch / (world * accumulation) samples, rounded up. All processes get the same number of parts, because they must
    run as many steps together; a process with too few samples gets empty parts.
    """
    size = -(-batch // (world * accumulation))
    indices = rank_share(range(count), rank, world)
    parts = -(-len(range(0, count, world)) // size)  # of rank 0, which has the most samples
    return [indices[number * size : (number + 1) * size] for number in range(parts)]


@dataclass(frozen=True)
class Position:
    """How far training is in the data: the next batch is number ``batch`` of epoch ``epoch``."""

    epoch: int = 0
    batch: int = 0


class Order:
    """The endless sequence of batches, epoch after epoch. Its state is ``position``, which checkpoints save."""

    def __init__(
        self,
        references: Sequence[int],
        batch: int,
        seed: int,
        position: Position | None = None,
        mix: Mix | None = None,
    ):
        self.references, self.batch, self.seed, self.mix = references, batch, seed, mix
        self.position = position or Position()
        self._epoch = -1
        self._batches: list[list[int]] = []

    def next(self) -> list[int]:
        """The sample numbers of the next batch."""
        if self._epoch != self.position.epoch:
            self._epoch = self.position.epoch
            self._batches = self._of(self._epoch)
        chosen = self._batches[self.position.batch]
        batch = self.position.batch + 1
        finished = batch == len(self._batches)
        self.position = Position(self.position.epoch + 1, 0) if finished else Position(self.position.epoch, batch)
        return chosen

    def steps(self, epochs: int) -> int:
        """The number of batches in the first ``epochs`` epochs."""
        return sum(len(self._of(epoch)) for epoch in range(epochs))

    def _of(self, epoch: int) -> list[list[int]]:
        return epoch_batches(self.references, self.batch, self.seed, epoch, self.mix)
