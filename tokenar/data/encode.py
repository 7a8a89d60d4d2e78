"""Raw shards to encoded shards: the work of tokenar-encode. The frozen encoders run here, once, and never in training.

A shard that exists is whole, so the same command continues where an earlier one stopped. Under torchrun every process
takes its share of the shards, on a GPU of its own. R references, S x S pixels a picture.
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
from tokenar.processes import Workers, place

MEGABYTE = 1 << 20


# The encoders


class FrozenTokenizer(ImageTokenizer, Protocol):
    """A tokenizer that tells its weights from others."""

    @property
    def fingerprint(self) -> str: ...


class FrozenText(Protocol):
    """A text encoder that tells its weights from others, and text from padding."""

    tokens: int
    width: int

    @property
    def fingerprint(self) -> str: ...

    def encode_with_mask(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> ([B, tokens, width], [B, tokens] bool, True where a prompt is)."""
        ...


class FrozenTeacher(Protocol):
    """A distillation teacher that tells its weights from others."""

    tokens: int
    width: int

    @property
    def fingerprint(self) -> str: ...

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, S, S] float in [-1, 1] -> [B, tokens, width]."""
        ...


@dataclass
class Pictures:
    """A sample on its way to the encoders: pixels [R+2, 3, S, S] uint8 of references, background and target; ``info``
    is what its JSON member will say, ``read`` the bytes it took up in the raw shard."""

    sample_id: str
    prompt: str
    pixels: Tensor
    info: dict[str, Any]
    read: int


@dataclass
class Encoders:
    """The frozen encoders; pictures are handed to the tokenizer on ``device``."""

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
        """Whose work the shards hold."""
        text = self.text.fingerprint + ("+padding" if self.keep_padding else "")
        teacher = self.teacher.fingerprint if self.teacher else None
        return Fingerprints(tokenizer=self.tokenizer.fingerprint, text=text, teacher=teacher)

    def shapes(self) -> Shapes:
        """What they give."""
        return Shapes(
            image_tokens=self.tokenizer.grid**2,
            vocabulary=self.tokenizer.vocabulary,
            text_tokens=self.text.tokens,
            text_width=self.text.width,
            teacher=(self.teacher.tokens, self.teacher.width) if self.teacher else None,
        )

    def encode(self, samples: Sequence[Pictures]) -> list[EncodedSample]:
        """All of one batch."""
        pixels = torch.cat([sample.pixels for sample in samples]).to(self.device)
        # On a GPU this returns at once, and what the teacher and T5 do on the processor costs no time.
        codes = self.tokenizer.encode(as_float(pixels))
        teacher: Sequence[Tensor | None] = [None] * len(samples)
        if self.teacher:
            teacher = list(self.teacher.encode(as_float(torch.stack([sample.pixels[-1] for sample in samples]))))
        text, mask = self.text.encode_with_mask([sample.prompt for sample in samples])
        if self.keep_padding:
            mask = torch.ones_like(mask)
        split = codes.cpu().split([len(sample.pixels) for sample in samples])
        return [
            EncodedSample(sample.sample_id, own, row[here], target)
            for sample, own, row, here, target in zip(samples, split, text, mask, teacher, strict=True)
        ]


def load_encoders(config: EncodeConfig, device: torch.device | str) -> Encoders:
    """The encoders of a configuration; UserError if one is not on this machine."""
    network = load_network(config.vq, config.vq_config)
    tokenizer = VqTokenizer(network, config.image_size, device, batch=config.vq_batch)
    text = T5Encoder(config.text, device)
    teacher = Teacher(config.teacher, device) if config.teacher else None
    return Encoders(tokenizer, text, teacher, config.keep_padding, device)


# The work


def encode_shards(config: EncodeConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Encode the shards that are not encoded yet; this process's counts: encoded, there (before), samples, seconds.

    ``overwrite`` also replaces shards of other encoders and removes those of raw shards that are gone. torchrun's
    environment variables say which share is this process's. UserError for whatever cannot be used; the shards that are
    done stay.
    """
    here = place()
    share = expand_shards(config.shards)[here.rank :: here.world]
    out = _out_folder(config)
    _drop_earlier(config, out, overwrite, here)
    encoders = load_encoders(config, here.device)
    return encode_files(share, out, encoders, config.batch, config.threads, overwrite=overwrite, show=here.first)


def _out_folder(config: EncodeConfig) -> Path:
    """The folder, made; raw shards of one name would be written to one file there."""
    seen: dict[str, str] = {}
    for url in expand_shards(config.shards):
        if (other := seen.setdefault(_name(url), url)) != url:
            raise UserError(f"{url}: named like {other}; encode them to different folders")
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give another --out") from error
    return out


def _drop_earlier(config: EncodeConfig, out: Path, overwrite: bool, here: Workers) -> None:
    """See to it that the folder holds no encoded shard of a raw one that is not there any more.

    Training would read it with the others. Only those count that the glob of the raw shards would name. UserError
    unless ``overwrite``, which removes them.
    """
    made = {_name(url) for url in expand_shards(config.shards)}
    old = [path for path in sorted(out.glob(_name(config.shards))) if path.name not in made and path.is_file()]
    old = [path for path in old if is_encoded(str(path))]
    if old and not overwrite:
        raise UserError(
            f"{old[0]}: one of {len(old)} encoded shards whose raw shard is not there any more; give another --out, or "
            "remove them with --overwrite"
        )
    if here.first:
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
    """Encode raw shards into the folder ``out``, which exists; see ``encode_shards``."""
    begun = time.monotonic()
    made_with = encoders.fingerprints(), encoders.shapes()
    todo = [url for url in urls if not _is_done(url, out / _name(url), *made_with, overwrite)]
    size = sum(file_size(url) for url in todo)
    samples = read = 0
    with Progress("encode, megabytes read", -(-size // MEGABYTE), every=50, show=show) as bar:

        def note(content: Pictures) -> None:
            nonlocal samples, read
            samples, read = samples + 1, read + content.read
            while bar.done < read // MEGABYTE:
                bar.advance(f"{samples / (time.monotonic() - begun):.1f} samples/s")

        for url in todo:
            _encode_shard(url, out / _name(url), encoders, batch, threads, note)
        while bar.done < bar.total:  # members are a little less than the files
            bar.advance()
    seconds = round(time.monotonic() - begun, 1)
    return {"encoded": len(todo), "there": len(urls) - len(todo), "samples": samples, "seconds": seconds}


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _is_done(url: str, path: Path, encoders: Fingerprints, shapes: Shapes, overwrite: bool) -> bool:
    """Whether ``path`` holds what these encoders say of the raw shard as it is now."""
    if is_encoded(url):
        raise UserError(f"{url}: is encoded already; give the raw shards")
    if not path.exists():
        return False
    if not is_encoded(str(path)):
        raise UserError(f"{path}: is there and is no encoded shard; give another --out")
    try:
        index = read_index(str(path))
    except UserError:  # damaged since: made again
        return False
    for facts, expected in ((index.encoders, encoders), (index.shapes, shapes)):
        for name, value in expected:
            if getattr(facts, name) != value and not overwrite:
                raise UserError(f"{path}: encoded with another {name}; give another --out, or replace with --overwrite")
    return (index.encoders, index.shapes, index.source) == (encoders, shapes, Source.of(url))


def _encode_shard(
    url: str, path: Path, encoders: Encoders, batch: int, threads: int, note: Callable[[Pictures], None]
) -> None:
    source = Source.of(url)

    def prepare(entry: tuple[str, dict[str, bytes]]) -> Pictures:
        return _pictures(url, *entry, encoders.tokenizer.image_size)

    def encoded(group: list[Pictures]) -> list[tuple[EncodedSample, Pictures]]:
        return list(zip(encoders.encode(group), group, strict=True))

    def noted(groups: Iterable[list[tuple[EncodedSample, Pictures]]]) -> Iterator[tuple[EncodedSample, dict[str, Any]]]:
        for found, sample in chain.from_iterable(groups):
            yield found, sample.info
            note(sample)

    try:
        with (
            Prefetched(read_members(url), prepare, threads, ahead=2 * batch) as samples,
            Prefetched(batches(samples, batch), encoded, threads=1) as groups,  # one: encoders are not shared
        ):
            write_shard(path, encoders.fingerprints(), encoders.shapes(), source, noted(groups))
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory is full; give a smaller --vq-batch or --batch") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made from {url} ({error.strerror or error}); mend that and run the command again"
        ) from error


def _pictures(url: str, sample_id: str, members: dict[str, bytes], size: int) -> Pictures:
    sample = decode_sample(sample_id, members, url)
    info = {
        **sample.info, "sample_id": sample_id, "prompt": sample.prompt, "references": len(sample.references),
    }  # fmt: skip
    read = sum(len(content) for content in members.values())
    pixels = pixels_of([*sample.references, sample.background, sample.target], size)
    return Pictures(sample_id, sample.prompt, pixels, info, read)


def batches(samples: Iterable[Pictures], size: int) -> Iterator[list[Pictures]]:
    """Groups of ``size``; the last may be smaller. Never across shards: what a shard holds depends on it alone."""
    group: list[Pictures] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
