"""The samples of a training run: encoded now from raw shards, or read from shards that tokenar-encode made."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from data_schemas.errors import UserError
from data_schemas.io.files import read_file, write_atomically
from data_schemas.io.text import decoded
from data_schemas.progress import Progress, tell
from data_schemas.shards import expand_shards
from tokenar.config import TrainConfig
from tokenar.data.encoded_shards import EncodedShards, FromShards
from tokenar.data.mixing import Mix
from tokenar.data.samples import (
    Encoded,
    InMemory,
    Joined,
    Resized,
    Samples,
    as_float,
    encode_resized,
    read_resized,
    variations,
)
from tokenar.data.shard_index import Source, is_encoded
from tokenar.encoders.config import T5Config, TokenizerConfig, VqConfig
from tokenar.encoders.fitted import FittedTokenizer, fit_tokenizer, load_fitted
from tokenar.encoders.patches import ImageTokenizer
from tokenar.encoders.teacher import Teacher
from tokenar.encoders.text import HashedWords, T5Encoder, TextEncoder
from tokenar.encoders.vq import VqTokenizer, load_network
from tokenar.model.folder import START, start_folder
from tokenar.model.layers import TEACHER_WIDTH
from tokenar.processes import Workers

ENCODED_AT_ONCE = 16
"""Samples encoded in one batch. Their pictures are float32 then, about 3 MB each at 512 pixels."""

ID_FILE, MAX_IDS = "give a file with a sample id on every line", 1 << 30
FITTED_SAMPLES = 1000
"""A tokenizer is fitted to the pictures of at most this many samples, evenly spread."""


@dataclass
class Inputs:
    """Training and validation samples, and the tokenizer that decodes pictures (None if its weights are not given).

    ``digest`` identifies the samples and ``encoders`` the encoders that made them (fingerprints by name); a resumed run
    must have the same. ``sources`` are the raw shards of the training samples, ``mix`` says how those of several data
    sets are mixed.
    """

    train: Samples
    val: Samples | None
    tokenizer: FittedTokenizer | VqTokenizer | None
    digest: str
    encoders: dict[str, str | None]
    sources: list[Source]
    mix: Mix | None = None


LoadInputs = Callable[[TrainConfig, Workers, Path, bool], Inputs]
"""``load_inputs``, or what stands for it."""


def load_inputs(config: TrainConfig, group: Workers, fitted: Path, resumed: bool) -> Inputs:
    """Read or open the shards that the settings name.

    ``fitted`` is the file for a fitted tokenizer, which is fitted on the training pictures unless the run is resumed.
    UserError for shards that do not go with the settings or with each other.
    """
    patterns = [*config.every_shards, *([config.val_shards] if config.val_shards else [])]
    kinds = {is_encoded(url): url for pattern in patterns for url in expand_shards(pattern)}
    if len(kinds) == 2:
        raise UserError(f"{kinds[False]} is a raw shard and {kinds[True]} an encoded one; give shards of one kind")
    if True in kinds:
        inputs = _open_encoded(config, group)
    elif isinstance(config.tokenizer, VqConfig):
        inputs = _encode_all(config, group)
    else:
        inputs = _encode_with_fitted(config, group, fitted, resumed)
    most = config.model.max_references
    for samples in (inputs.train, inputs.val):
        if samples and max(samples.references) > most:
            raise UserError(
                f"sample {samples.sample_ids[samples.references.index(max(samples.references))]}: "
                f"{max(samples.references)} references, the model takes up to {most}; set model.max_references higher"
            )
    return inputs


# Raw shards


def _digest(*sets: list[Resized]) -> str:
    """A digest over ids, prompts and pixels. Ids are not enough: they stay the same if the dataset is made again."""
    digest = hashlib.sha256()
    for sample in chain(*sets):
        digest.update(f"{sample.sample_id} {sample.prompt} {list(sample.pixels.shape)} ".encode())
        digest.update(sample.pixels.numpy().tobytes())
    return digest.hexdigest()


def _encode_with_fitted(config: TrainConfig, group: Workers, fitted: Path, resumed: bool) -> Inputs:
    """Raw shards and a fitted tokenizer: all samples in memory. The first rank fits the tokenizer for all ranks."""
    assert not isinstance(config.tokenizer, VqConfig)
    train_set, val_set, sizes = _read_raw(config, group)
    copied = f" and {config.variations} varied copies of each" if config.variations else ""
    tell(f"preparing {len(train_set)} samples{copied}", group.first)
    varied = variations(train_set, config.variations, config.unit, config.seed)
    if group.first and not resumed:
        made = _known_tokenizer(config) or _fit(config.tokenizer, [s for copy in varied[:2] for s in copy])
        write_atomically(fitted, made.save)
    group.wait()
    tokenizer = load_fitted(fitted)
    text, teacher = _text_encoder(config, group.device), _teacher(config, group.device)
    with _encoding([*varied, val_set], group) as bar:
        copies, val = _encoded(varied, val_set, tokenizer, text, teacher, bar)
    digest = _digest(train_set, val_set)
    return Inputs(copies, val, tokenizer, digest, {}, _sources(config, group), mix_of(config, sizes))


def _fit(config: TokenizerConfig, samples: list[Resized]) -> FittedTokenizer:
    pixels = torch.cat([sample.pixels for sample in samples[:: -(-len(samples) // FITTED_SAMPLES)]])
    tell(f"fitting a codebook of {config.vocabulary} patches to {len(pixels)} pictures")
    return fit_tokenizer(config, as_float(pixels))


def _known_tokenizer(config: TrainConfig) -> FittedTokenizer | None:
    """The tokenizer that was fitted before: of the settings' file, or of the model folder that training starts from;
    None if there is none.

    UserError for one whose tokens are not those of the settings.
    """
    folder = START if config.tokenizer_weights == "packaged" else start_folder(config.start_from)
    file = folder / "tokenizer.safetensors" if folder else None
    if config.tokenizer_weights not in (None, "packaged"):
        file = Path(config.tokenizer_weights)
    if file is None:
        return None
    assert not isinstance(config.tokenizer, VqConfig)
    tokenizer = load_fitted(file)
    apart = {"seed", "steps", "image_size"}
    own, wanted = (c.model_dump(exclude=apart) for c in (tokenizer.config, config.tokenizer))
    if own != wanted:
        raise UserError(f"{file}: a tokenizer of {own}, the settings have {wanted}; set tokenizer so")
    return tokenizer.resized(config.tokenizer.image_size)


def _encode_all(config: TrainConfig, group: Workers) -> Inputs:
    """Raw shards and a VQ tokenizer: all samples are encoded and kept in memory. Meant for small runs."""
    train_set, val_set, sizes = _read_raw(config, group)
    tokenizer = _vq_tokenizer(config, group)
    if tokenizer is None:
        raise UserError(
            f"{config.shards}: holds no codes, and there is no encoder to make them; set tokenizer_weights, or run "
            "tokenar-encode on the shards and give what it makes"
        )
    text, teacher = _text_encoder(config, group.device), _teacher(config, group.device)

    varied = variations(train_set, config.variations, config.unit, config.seed)
    with _encoding([*varied, val_set], group) as bar:
        copies, val = _encoded(varied, val_set, tokenizer, text, teacher, bar)
    encoders: dict[str, str | None] = {"tokenizer": tokenizer.fingerprint}
    digest = _digest(train_set, val_set)
    return Inputs(copies, val, tokenizer, digest, encoders, _sources(config, group), mix_of(config, sizes))


def _encoding(sets: Sequence[Sequence[Resized]], group: Workers) -> Progress:
    total = sum(map(len, sets))
    return Progress("encode samples", total, every=-(-total // 5), show=group.first)


def _encoded(
    copies: Sequence[Sequence[Resized]],
    val_set: Sequence[Resized],
    tokenizer: ImageTokenizer,
    text: TextEncoder,
    teacher: Teacher | None,
    bar: Progress,
) -> tuple[InMemory, InMemory | None]:
    """Encode the training samples with their varied copies, and the validation samples."""

    def encode(samples: Sequence[Resized]) -> list[Encoded]:
        encoded = []
        for start in range(0, len(samples), ENCODED_AT_ONCE):
            encoded += encode_resized(samples[start : start + ENCODED_AT_ONCE], tokenizer, text, teacher)
            bar.advance(by=len(encoded) - start)
        return encoded

    return InMemory([encode(copy) for copy in copies]), InMemory([encode(val_set)]) if val_set else None


def mix_of(config: TrainConfig, sizes: Sequence[int]) -> Mix | None:
    """How the training sets of these sizes are mixed; None for one set, and where each sample comes once an epoch."""
    return Mix(tuple(sizes), config.weights) if config.also and config.weights else None


def _tell_shards(what: str, config: TrainConfig, group: Workers) -> None:
    tell(f"{what} {' and '.join(filter(None, (*config.every_shards, config.val_shards)))}", group.first)


def _read_raw(config: TrainConfig, group: Workers) -> tuple[list[Resized], list[Resized], list[int]]:
    """The training samples, the validation samples, and how many training samples each glob has."""
    _tell_shards("reading", config, group)
    size, most = config.image_size, config.model.max_references
    val_set = read_resized(config.val_shards, size, most) if config.val_shards else []
    only = chosen_ids(config)
    sets = [read_resized(pattern, size, most, only) for pattern in config.every_shards]
    return list(chain(*sets)), val_set, [len(own) for own in sets]


def chosen_ids(config: TrainConfig) -> set[str] | None:
    """The ids of the training samples to use; None for all. UserError for a file that cannot be read."""
    return None if config.only is None else set(decoded(read_file(config.only, ID_FILE, MAX_IDS)).splitlines())


def _sources(config: TrainConfig, group: Workers) -> list[Source]:
    """The raw training shards. Only the first process writes them down, so only that one reads them for it."""
    urls = [url for pattern in config.every_shards for url in expand_shards(pattern)]
    return [Source.of(url) for url in urls] if group.first else []


def _vq_tokenizer(config: TrainConfig, group: Workers) -> VqTokenizer | None:
    if config.tokenizer_weights is None:
        return None
    assert isinstance(config.tokenizer, VqConfig)
    return VqTokenizer(load_network(config.tokenizer_weights, config.tokenizer), config.image_size, group.device)


def _text_encoder(config: TrainConfig, device: torch.device | str) -> TextEncoder:
    if not isinstance(config.text, T5Config):
        return HashedWords(config.text)
    encoder = T5Encoder(config.text, device)
    if encoder.width != config.model.text_width:
        raise UserError(f"text.model gives features of width {encoder.width}; set model.text_width so")
    return encoder


def _teacher(config: TrainConfig, device: torch.device | str) -> Teacher | None:
    if not config.teacher:
        return None
    teacher = Teacher(config.teacher, device)
    _check_teacher(config, "teacher:", teacher.tokens, teacher.width)
    return teacher


def _check_teacher(config: TrainConfig, whose: str, tokens: int, width: int) -> None:
    """UserError for features of a teacher that cannot be compared with the model's."""
    expected = sum(config.model.teachers.values())
    if (tokens, width) != (expected, TEACHER_WIDTH):
        raise UserError(
            f"{whose} {tokens} features of width {width} an image, model.distill {config.model.distill} takes "
            f"{expected} of width {TEACHER_WIDTH}; choose teacher and model.distill that go together"
        )


# Encoded shards


def _open_encoded(config: TrainConfig, group: Workers) -> Inputs:
    if not isinstance(config.tokenizer, VqConfig) or not isinstance(config.text, T5Config):
        raise UserError(
            f"{config.shards}: encoded shards hold the codes of a VQ tokenizer and features of a T5; set tokenizer and "
            "text so, as the presets released and tokenar_xl do, or give raw shards"
        )
    if config.only:
        raise UserError(f"{config.shards}: of encoded shards all samples are used; unset only, or give raw shards")
    if config.variations:
        raise UserError(f"{config.shards}: encoded pictures cannot be varied; set variations 0 or give raw shards")
    _tell_shards("opening", config, group)
    train, *others = (EncodedShards(pattern) for pattern in config.every_shards)
    val = EncodedShards(config.val_shards) if config.val_shards else None
    for own in (train, *others, *([val] if val else [])):
        own.expect(**train.encoders.model_dump())
        _check_shapes(config, own)
    tokenizer = _vq_tokenizer(config, group)
    if group.first:
        tell("comparing the shards' encoders with this run's")
        _check_encoders(config, train, tokenizer)
    group.wait()
    tokens, sets = config.model.text_tokens, (train, *others)
    samples = [FromShards(own, tokens) for own in sets]
    digest = hashlib.sha256(" ".join(own.digest() for own in sets).encode()).hexdigest()
    return Inputs(
        Joined(samples) if others else samples[0], FromShards(val, tokens) if val else None, tokenizer,
        digest if others else train.digest(), train.encoders.model_dump(), [s for own in sets for s in own.sources],
        mix_of(config, [len(own) for own in sets]),
    )  # fmt: skip


def _check_shapes(config: TrainConfig, shards: EncodedShards) -> None:
    model, shapes = config.model, shards.shapes
    for name in ("image_tokens", "vocabulary", "text_tokens", "text_width"):
        if getattr(model, name) != getattr(shapes, name):
            raise UserError(
                f"{shards.pattern}: encoded with {name} {getattr(shapes, name)}, the model has {getattr(model, name)}; "
                "give the shards' settings or encode them again"
            )
    if config.teacher:
        if shapes.teacher is None:
            raise UserError(f"{shards.pattern}: encoded without a teacher; encode them with one or set teacher to null")
        _check_teacher(config, f"{shards.pattern}: encoded with", *shapes.teacher)
    padded = shards.encoders.text.endswith("+padding")
    if padded != (model.text_padding == "attended"):
        raise UserError(
            f"{shards.pattern}: encoded {'with' if padded else 'without'} the captions' padding, which the model "
            f"{'masks' if padded else 'reads'}; encode them {'without' if padded else 'with'} --keep-padding or set "
            f"model.text_padding to {'attended' if padded else 'masked'}"
        )


def _check_encoders(config: TrainConfig, shards: EncodedShards, tokenizer: VqTokenizer | None) -> None:
    """UserError for shards that other encoders made.

    An encoder whose weights are not on this machine is not compared; a line on stderr says so. The encoders are loaded
    on the CPU, because they are only hashed and a T5-XL would take the GPU memory that training needs.
    """
    padding = "+padding" if shards.encoders.text.endswith("+padding") else ""

    def text() -> str:
        return _text_encoder(config, "cpu").fingerprint + padding  # type: ignore[attr-defined]

    def teacher() -> str:
        return Teacher(config.teacher, "cpu").fingerprint if config.teacher else ""

    shards.expect(
        tokenizer=tokenizer.fingerprint if tokenizer else None,
        text=_fingerprint_if_available("text encoder", text),
        teacher=_fingerprint_if_available("teacher", teacher) if config.teacher else None,
    )


def _fingerprint_if_available(name: str, fingerprint: Callable[[], str]) -> str | None:
    """The fingerprint, or None with a line on stderr if the encoder cannot be loaded on this machine."""
    try:
        return fingerprint()
    except UserError as error:
        print(f"{name} not compared with the shards': {error}", file=sys.stderr, flush=True)
        return None
