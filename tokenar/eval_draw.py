"""Drawing what an evaluation lacks: every process a share of the samples, nothing twice.

A picture that is there was drawn by this model, with these settings, from this sample: ``recipe.json`` beside the
pictures says so, and what it does not vouch for is drawn again.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from data_schemas.errors import UserError
from data_schemas.shards import ShardSample, decode_sample, expand_shards, read_members
from tokenar.config import SampleConfig
from tokenar.generate import sample
from tokenar.model_folder import Model, write_atomically
from tokenar.parallel import Workers
from tokenar.progress import Progress

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.safetensors")


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


def model_fingerprint(folder: Path) -> str:
    """SHA-256 of the files of a model folder; UserError if it is none."""
    digest = hashlib.sha256()
    for name in MODEL_FILES:
        if (folder / name).is_file():
            with open(folder / name, "rb") as file:
                digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
        elif name != "tokenizer.safetensors":
            raise UserError(f"{folder}: no model there (no {name}); give the 'model' folder of a finished run")
    return digest.hexdigest()


def draw_missing(
    load: Callable[[], Model],
    fingerprint: str,
    shards: str,
    digests: Mapping[str, str],
    folder: Path,
    config: SampleConfig,
    group: Workers,
    quiet: bool = False,
) -> None:
    """Have ``<sample_id>.png`` in ``folder`` for every sample of ``digests`` (sample id -> digest, in stored order).

    The model is only loaded by a process that has something to draw.
    """
    ids = list(digests)
    if group.first:
        _forget_others(folder, digests, {"model": fingerprint, "sampling": config.model_dump(mode="json")})
    group.wait()
    chunks = [ids[start : start + config.batch] for start in range(0, len(ids), config.batch)]
    missing = [chunk for chunk in chunks if not all((folder / f"{i}.png").is_file() for i in chunk)]
    group.wait()  # or a quick process would draw before a slow one has looked
    mine = missing[group.rank :: group.world]
    if mine:
        model, wanted = load(), {chunk[-1]: chunk for chunk in mine}
        with Progress("sample", sum(map(len, mine)), every=config.batch, show=not quiet and group.first) as bar:
            held: dict[str, Stored] = {}
            for stored in stored_samples(shards, len(ids)):
                held[stored.sample_id] = stored
                if stored.number % config.batch == config.batch - 1 or stored.number == len(ids) - 1:
                    if stored.sample_id in wanted:
                        _draw([held[i] for i in wanted[stored.sample_id]], model, folder, config, group.rank)
                        for _ in wanted[stored.sample_id]:
                            bar.advance()
                    held = {}
    group.wait()
    if group.first:
        _list_samples(folder, ids)


def _draw(chunk: Sequence[Stored], model: Model, folder: Path, config: SampleConfig, rank: int) -> None:
    """Draw neighbouring samples with the seeds they have among all: the sampler reads them as a shard of their own."""
    place = folder / f".drawing-{rank}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with tarfile.open(place / "chunk.tar", "w") as tar:
        for stored in chunk:
            for name, content in stored.members.items():
                entry = tarfile.TarInfo(f"{stored.sample_id}.{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    seeded = config.model_copy(update={"seed": config.seed + chunk[0].number})
    sample(model, str(place / "chunk.tar"), place, seeded, quiet=True)
    for stored in chunk:
        (place / f"{stored.sample_id}.png").replace(folder / f"{stored.sample_id}.png")
    shutil.rmtree(place)


def _forget_others(folder: Path, digests: Mapping[str, str], how: Mapping[str, object]) -> None:
    """Remove the pictures that were drawn otherwise, and say in recipe.json how those to come are drawn."""
    recipe = folder / "recipe.json"
    try:
        old = json.loads(recipe.read_text())
        known = old["samples"] if {key: old[key] for key in how} == how else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    samples = {sample_id: f"{number} {digest}" for number, (sample_id, digest) in enumerate(digests.items())}
    try:
        for path in folder.glob("*.png"):
            if path.stem not in known or samples.get(path.stem, known[path.stem]) != known[path.stem]:
                path.unlink()
        content = json.dumps({**how, "samples": {**known, **samples}}, indent=2) + "\n"
        write_atomically(recipe, lambda path: path.write_text(content))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --out") from error


def _list_samples(folder: Path, ids: Sequence[str]) -> None:
    """``samples.json`` as the sampler writes it: the recipes that lie in the pictures themselves."""
    records = []
    for sample_id in ids:
        with Image.open(folder / f"{sample_id}.png") as picture:
            records.append(json.loads(picture.info["tokenar"]))
    content = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "samples.json", lambda path: path.write_text(content))
