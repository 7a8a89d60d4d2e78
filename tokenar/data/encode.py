"""tokenar-encode: raw shards to encoded shards. The frozen encoders run here, once, and not in training.

An encoded shard that exists is complete, so the same command continues where an earlier run stopped. Under torchrun
every process encodes a part of the shards on its own GPU.

Shape legend: B batch, R references, S side of an image in pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.files import sweep
from data_schemas.io.new_folders import make_folder
from data_schemas.progress import Progress
from data_schemas.shards import decode_sample, expand_shards, read_members
from tokenar.data.encoded_shards import EncodedSample, write_shard
from tokenar.data.prefetch import Prefetched
from tokenar.data.samples import as_float, pixels_of
from tokenar.data.shard_index import MAX_VOCABULARY, Fingerprints, Shapes, Source, file_size, is_encoded, read_index
from tokenar.encoders.config import EncodeConfig
from tokenar.encoders.patches import ImageTokenizer
from tokenar.encoders.teacher import Teacher
from tokenar.encoders.text import T5Encoder
from tokenar.encoders.vq import VqTokenizer, load_network
from tokenar.processes import Workers, this_process

MEGABYTE = 1 << 20


# The encoders


class FrozenTokenizer(ImageTokenizer, Protocol):
    """An image tokenizer whose ``fingerprint`` identifies its weights."""

    @property
    def fingerprint(self) -> str: ...


class FrozenText(Protocol):
    """A text encoder whose ``fingerprint`` identifies its weights and settings."""

    tokens: int
    width: int

    @property
    def fingerprint(self) -> str: ...

    def encode_with_mask(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> (features [B, tokens, width], mask [B, tokens] bool, False at padding)."""
        ...


class FrozenTeacher(Protocol):
    """A distillation teacher whose ``fingerprint`` identifies its weights and settings."""

    tokens: int
    width: int

    @property
    def fingerprint(self) -> str: ...

    def encode(self, pictures: Tensor) -> Tensor:
        """Images [B, 3, S, S] float in [-1, 1] -> features [B, tokens, width]."""
        ...


@dataclass
class Pictures:
    """A decoded sample, ready for the encoders: pixels [R+2, 3, S, S] uint8 of references, background and target.

    ``info`` is the content of the JSON member to be written, and ``raw_bytes`` the sample's size in the raw shard.
    """

    sample_id: str
    prompt: str
    pixels: Tensor
    info: dict[str, Any]
    raw_bytes: int


@dataclass
class Encoders:
    """The frozen encoders. Images are moved to ``device`` before they go to the tokenizer.

    With ``keep_padding`` the text features at padding are stored too.
    """

    tokenizer: FrozenTokenizer
    text: FrozenText
    teacher: FrozenTeacher | None = None
    keep_padding: bool = False
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.tokenizer.vocabulary > MAX_VOCABULARY:
            raise UserError(
                f"the tokenizer has {self.tokenizer.vocabulary} codes, shards hold up to {MAX_VOCABULARY}; take one "
                "with fewer"
            )

    def fingerprints(self) -> Fingerprints:
        """The encoders' fingerprints, which are stored in every shard."""
        text = self.text.fingerprint + ("+padding" if self.keep_padding else "")
        teacher = self.teacher.fingerprint if self.teacher else None
        return Fingerprints(tokenizer=self.tokenizer.fingerprint, text=text, teacher=teacher)

    def shapes(self) -> Shapes:
        """The shapes of the encoders' results, which are stored in every shard."""
        return Shapes(
            image_tokens=self.tokenizer.grid**2,
            vocabulary=self.tokenizer.vocabulary,
            text_tokens=self.text.tokens,
            text_width=self.text.width,
            teacher=(self.teacher.tokens, self.teacher.width) if self.teacher else None,
        )

    def encode(self, samples: Sequence[Pictures]) -> list[EncodedSample]:
        """Encode one batch of samples."""
        pixels = torch.cat([sample.pixels for sample in samples]).to(self.device)
        # On a GPU this call returns early, and the CPU prepares the inputs of teacher and T5 in the meantime.
        codes = self.tokenizer.encode(as_float(pixels))
        teacher: Sequence[Tensor | None] = [None] * len(samples)
        if self.teacher:
            teacher = list(self.teacher.encode(as_float(torch.stack([sample.pixels[-1] for sample in samples]))))
        text, mask = self.text.encode_with_mask([sample.prompt for sample in samples])
        if self.keep_padding:
            mask = torch.ones_like(mask)
        per_sample = codes.cpu().split([len(sample.pixels) for sample in samples])
        return [
            EncodedSample(sample.sample_id, own_codes, features[kept], target)
            for sample, own_codes, features, kept, target in zip(samples, per_sample, text, mask, teacher, strict=True)
        ]


def load_encoders(config: EncodeConfig, device: torch.device | str) -> Encoders:
    """Load the encoders of a configuration; UserError if one of them is not on this machine."""
    network = load_network(config.vq, config.vq_config)
    tokenizer = VqTokenizer(network, config.image_size, device, batch=config.vq_batch)
    text = T5Encoder(config.text, device)
    teacher = Teacher(config.teacher, device) if config.teacher else None
    return Encoders(tokenizer, text, teacher, config.keep_padding, device)


# The shards


def encode_shards(config: EncodeConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Encode the raw shards that are not encoded yet. Under torchrun each process encodes its part of them.

    ``overwrite`` also replaces encoded shards of other encoders, and removes those whose raw shard is gone. Returns
    this process's counts: shards "encoded" and "there" (encoded before), "samples" and "seconds". UserError for input
    that cannot be used; shards that were finished before it remain.
    """
    process = this_process()
    urls = expand_shards(config.shards)[process.rank :: process.world]
    out = _out_folder(config)
    _check_leftovers(config, out, overwrite, process)
    encoders = load_encoders(config, process.device)
    return encode_files(urls, out, encoders, config.batch, config.threads, overwrite=overwrite, show=process.first)


def _out_folder(config: EncodeConfig) -> Path:
    """Create the output folder; UserError if two raw shards have the same name and would be written to one file."""
    url_of: dict[str, str] = {}
    for url in expand_shards(config.shards):
        if (other := url_of.setdefault(_name(url), url)) != url:
            raise UserError(f"{url}: named like {other}; encode them to different folders")
    out = Path(config.out)
    make_folder(out)
    return out


def _check_leftovers(config: EncodeConfig, out: Path, overwrite: bool, process: Workers) -> None:
    """UserError if the folder has encoded shards whose raw shard is gone; ``overwrite`` removes them instead.

    Training would read them with the others. Only files whose names match the glob of the raw shards are considered.
    """
    current = {_name(url) for url in expand_shards(config.shards)}
    old = [path for path in sorted(out.glob(_name(config.shards))) if path.name not in current and path.is_file()]
    old = [path for path in old if is_encoded(str(path))]
    if old and not overwrite:
        raise UserError(
            f"{old[0]}: one of {len(old)} encoded shards whose raw shard is not there any more; give another --out, or "
            "remove them with --overwrite"
        )
    if process.first:
        sweep(out)
        for path in old:
            path.unlink(missing_ok=True)


def encode_files(
    urls: Sequence[str],
    out: Path,
    encoders: Encoders,
    batch: int = 16,
    threads: int = 8,
    *,
    overwrite: bool = False,
    show: bool = True,
) -> dict[str, Any]:
    """Encode raw shards into the existing folder ``out``, and show progress if ``show``; see ``encode_shards``."""
    begun = time.monotonic()
    facts = encoders.fingerprints(), encoders.shapes()
    todo = [url for url in urls if not _is_done(url, out / _name(url), *facts, overwrite)]
    size = sum(file_size(url) for url in todo)
    samples = raw_bytes = 0
    with Progress("encode, megabytes read", -(-size // MEGABYTE), every=50, show=show) as bar:

        def count(sample: Pictures) -> None:
            nonlocal samples, raw_bytes
            samples, raw_bytes = samples + 1, raw_bytes + sample.raw_bytes
            while bar.done < raw_bytes // MEGABYTE:
                bar.advance(f"{samples / (time.monotonic() - begun):.1f} samples/s")

        for url in todo:
            _encode_shard(url, out / _name(url), encoders, batch, threads, count)
        while bar.done < bar.total:  # the members of a tar have fewer bytes than the file
            bar.advance()
    seconds = round(time.monotonic() - begun, 1)
    return {"encoded": len(todo), "there": len(urls) - len(todo), "samples": samples, "seconds": seconds}


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _is_done(url: str, path: Path, encoders: Fingerprints, shapes: Shapes, overwrite: bool) -> bool:
    """Whether ``path`` is the encoded shard of these encoders for the raw shard at ``url`` as it is now.

    UserError if it was made by other encoders, unless ``overwrite``.
    """
    if is_encoded(url):
        raise UserError(f"{url}: is encoded already; give the raw shards")
    if not path.exists():
        return False
    if not is_encoded(str(path)):
        raise UserError(f"{path}: is there and is no encoded shard; give another --out")
    try:
        index = read_index(str(path))
    except UserError:  # it was damaged, and is encoded again
        return False
    for facts, expected in ((index.encoders, encoders), (index.shapes, shapes)):
        for name, value in expected:
            if getattr(facts, name) != value and not overwrite:
                raise UserError(f"{path}: encoded with another {name}; give another --out, or replace with --overwrite")
    return (index.encoders, index.shapes, index.source) == (encoders, shapes, Source.of(url))


def _encode_shard(
    url: str, path: Path, encoders: Encoders, batch: int, threads: int, count: Callable[[Pictures], None]
) -> None:
    """Encode one raw shard to ``path``. ``count`` is called with every sample when it has been written."""
    source = Source.of(url)

    def prepare(entry: tuple[str, dict[str, bytes]]) -> Pictures:
        return _pictures(url, *entry, encoders.tokenizer.image_size)

    def encode(group: list[Pictures]) -> list[tuple[EncodedSample, Pictures]]:
        return list(zip(encoders.encode(group), group, strict=True))

    def counted(
        groups: Iterable[list[tuple[EncodedSample, Pictures]]],
    ) -> Iterator[tuple[EncodedSample, dict[str, Any]]]:
        for encoded, sample in chain.from_iterable(groups):
            yield encoded, sample.info
            count(sample)

    try:
        with (
            Prefetched(read_members(url), prepare, threads, ahead=2 * batch) as samples,
            Prefetched(batches(samples, batch), encode, threads=1) as groups,  # one thread uses the encoders
        ):
            write_shard(path, encoders.fingerprints(), encoders.shapes(), source, counted(groups))
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory is full; give a smaller --vq-batch or --batch") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made from {url} ({error.strerror or error}); mend that and run the command again"
        ) from error


def _pictures(url: str, sample_id: str, members: dict[str, bytes], size: int) -> Pictures:
    """Decode the members of one sample and resize its images to ``size`` pixels."""
    sample = decode_sample(sample_id, members, url)
    info = {
        **sample.info, "sample_id": sample_id, "prompt": sample.prompt, "references": len(sample.references),
    }  # fmt: skip
    raw_bytes = sum(len(content) for content in members.values())
    pixels = pixels_of([*sample.references, sample.background, sample.target], size)
    return Pictures(sample_id, sample.prompt, pixels, info, raw_bytes)


def batches(samples: Iterable[Pictures], size: int) -> Iterator[list[Pictures]]:
    """Groups of ``size`` samples; the last may be smaller.

    They are made for each shard anew, so that the content of an encoded shard depends on no other shard.
    """
    group: list[Pictures] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
