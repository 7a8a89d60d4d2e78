"""What to draw pictures for: the samples of shards, folders as the published program reads them, or a JSON list.

    folder/              one sample, or a folder of such folders
        ref/*.png, *.webp    references, in the order of their names
        background.png
        description.txt

    list.json            [{"references": ["cat.png", "cup.png"], "background": "table.png", "prompt": "a cat beside a
                           cup", "id": "cat_cup", "seed": 7}, ...]; id and seed may be left out; files are looked for
                           beside the list

Transparent parts of pictures become white, as in the shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data_schemas import pictures
from data_schemas.errors import UserError
from data_schemas.settings import MAX_SEED
from data_schemas.shards import decode_sample, expand_shards, read_members, sample_ids
from tokenar.config import first_problem

REFERENCE_SUFFIXES = (".png", ".webp")


@dataclass
class Request:
    """Pictures and words to draw one picture from; references and background are RGB."""

    sample_id: str
    prompt: str
    references: list[Image.Image]
    background: Image.Image
    seed: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pictures, the first 16 digits."""
        digest = hashlib.sha256()
        for picture in (*self.references, self.background):
            digest.update(f"{picture.size} ".encode() + picture.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Requests:
    """Requests by number: their ids, and how to read those that are wanted, in order."""

    sample_ids: list[str]
    read: Callable[[Callable[[int], bool]], Iterator[tuple[int, Request]]]


class Entry(BaseModel):
    """One entry of a JSON list."""

    model_config = ConfigDict(extra="forbid")
    references: list[str] = Field(min_length=1)
    background: str
    prompt: str
    id: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)


def from_shards(pattern: str, limit: int | None = None) -> Requests:
    """The samples of every shard that ``pattern`` names, in stored order."""
    urls = expand_shards(pattern)
    ids = [sample_id for url in urls for sample_id in sample_ids(url)][:limit]
    if not ids:
        raise UserError(f"{pattern}: the shards hold no sample; make them again")

    def read(wanted: Callable[[int], bool]) -> Iterator[tuple[int, Request]]:
        stored = ((url, *entry) for url in urls for entry in read_members(url))
        for number, (_, (url, sample_id, members)) in enumerate(zip(ids, stored, strict=False)):
            if wanted(number):
                sample = decode_sample(sample_id, members, url)
                yield number, Request(sample_id, sample.prompt, sample.references, sample.background)

    return Requests(ids, read)


def from_folder(path: str | Path, limit: int | None = None) -> Requests:
    """The sample in a folder, or those in its folders by name."""
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give one with ref/, background.png and description.txt")
    folders = [root] if (root / "ref").is_dir() else sorted(p for p in root.iterdir() if (p / "ref").is_dir())
    if not folders:
        raise UserError(f"{root}: neither it nor a folder in it has a folder ref with the references; add one")
    return _from_files([(folder.resolve().name, partial(_folder, folder)) for folder in folders[:limit]])


def _folder(folder: Path) -> Request:
    files = sorted(p for p in (folder / "ref").iterdir() if p.suffix.lower() in REFERENCE_SUFFIXES)
    if not files:
        raise UserError(f"{folder / 'ref'}: no reference there; put 1 or more PNG or WebP pictures in it")
    background = next((p for p in map(folder.joinpath, ("background.png", "background.webp")) if p.is_file()), None)
    if background is None:
        raise UserError(f"{folder}: no background.png; add the scene to draw into (a plain white picture is one too)")
    prompt = _read(folder / "description.txt", "add the prompt").decode("utf-8", "replace").strip()
    return Request(folder.resolve().name, prompt, [_picture(file) for file in files], _picture(background))


def from_list(path: str | Path, limit: int | None = None) -> Requests:
    """The entries of a JSON list."""
    file = Path(path)
    try:
        entries = TypeAdapter(list[Entry]).validate_json(_read(file, "give a JSON list"))
    except ValidationError as error:
        raise UserError(f"{file}: entry {first_problem(error)}") from error
    if not entries:
        raise UserError(f"{file}: the list is empty; add an entry with references, background and prompt")
    names = [entry.id or f"{number:05d}" for number, entry in enumerate(entries)][:limit]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{file}: the id {twice!r} stands there twice; give every entry its own")

    def request(name: str, entry: Entry) -> Request:
        references = [_picture(file.parent / reference) for reference in entry.references]
        return Request(name, entry.prompt, references, _picture(file.parent / entry.background), entry.seed)

    return _from_files([(name, partial(request, name, entry)) for name, entry in zip(names, entries, strict=False)])


def _from_files(entries: list[tuple[str, Callable[[], Request]]]) -> Requests:
    def read(wanted: Callable[[int], bool]) -> Iterator[tuple[int, Request]]:
        return ((number, open_it()) for number, (_, open_it) in enumerate(entries) if wanted(number))

    return Requests([name for name, _ in entries], read)


def _picture(path: Path) -> Image.Image:
    return pictures.on_white(pictures.decode(_read(path, "give the picture's file"), str(path)))


def _read(path: Path, advice: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
