"""Requests to draw a picture, read from shards, from folders like those of the published program, or from a JSON list.

    folder/              one request, or a folder of such folders; see data_schemas/io/folders.py

    list.json            [{"references": ["cat.png", "cup.png"], "background": "table.png", "prompt": "a cat beside a
                           cup", "id": "cat_cup", "seed": 7}, ...]; id and seed are optional; paths are relative to the
                           list's folder

Transparent parts of images become white, as in the shards (docs/differences.md, "Transparent pixels").
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data_schemas.errors import UserError
from data_schemas.io import folders, pictures
from data_schemas.io.documents import MAX_BYTES as MAX_LIST
from data_schemas.io.files import read_file
from data_schemas.io.text import decoded, from_path
from data_schemas.settings import MAX_SEED, first_mistake
from data_schemas.shards import check_distinct, decode_sample, expand_shards, read_distinct, sample_ids


@dataclass
class Request:
    """What one picture is drawn from: a prompt, and references and a background in RGB. Only models that edit a picture
    draw without a background."""

    sample_id: str
    prompt: str
    references: list[Image.Image]
    background: Image.Image | None
    seed: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 digits of the SHA-256 of the references and the background."""
        digest = hashlib.sha256()
        for picture in (*self.references, *([] if self.background is None else [self.background])):
            digest.update(f"{picture.size} ".encode() + picture.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Requests:
    """A list of requests that are read when needed. ``read(wanted)`` yields (number, request) in order, for the numbers
    for which ``wanted`` returns True."""

    sample_ids: list[str]
    read: Callable[[Callable[[int], bool]], Iterator[tuple[int, Request]]]

    def only(self, numbers: Collection[int]) -> Requests:
        """Some of the requests, each with its number, from which its seed follows."""
        ids = [self.sample_ids[number] for number in sorted(numbers)]
        return Requests(ids, lambda wanted: self.read(lambda number: number in numbers and wanted(number)))


class Entry(BaseModel):
    """One entry of a JSON list."""

    model_config = ConfigDict(extra="forbid")
    references: list[str] = Field(min_length=1)
    background: str | None = None
    prompt: str
    id: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)


def from_shards(pattern: str | Sequence[str], limit: int | None = None) -> Requests:
    """The samples of all shards that a glob names, or several, in stored order."""
    urls = expand_shards(pattern)
    ids = list(islice(_distinct_ids(urls), limit))
    if not ids:
        raise UserError(f"{pattern}: the shards hold no sample; make them again")

    def read(wanted: Callable[[int], bool]) -> Iterator[tuple[int, Request]]:
        for number, (_, (url, sample_id, members)) in enumerate(zip(ids, read_distinct(urls), strict=False)):
            if wanted(number):
                sample = decode_sample(sample_id, members, url)
                yield number, Request(sample_id, sample.prompt, sample.references, sample.background)

    return Requests(ids, read)


def _distinct_ids(urls: list[str]) -> Iterator[str]:
    """The sample ids of shards; UserError if an id comes twice."""
    shard_of: dict[str, str] = {}
    for url in urls:
        for sample_id in sample_ids(url):
            check_distinct(sample_id, url, shard_of)
            yield sample_id


def from_folder(path: str | Path, limit: int | None = None) -> Requests:
    """The request in a folder, or those in its subfolders, ordered by name."""
    root = Path(path)
    if not folders.is_folder(root):
        raise UserError(f"{root}: no such folder; give one with ref/, background.png and description.txt")
    found = folders.example_folders(root)
    if not found:
        raise UserError(f"{root}: neither it nor a folder in it has a folder ref with the references; add one")
    return _from_files([(_name(folder), partial(_folder, folder)) for folder in found[:limit]], str(root))


def _name(folder: Path) -> str:
    return from_path(folder.resolve().name)


def _folder(folder: Path) -> Request:
    """Read the request in one folder."""
    files = folders.reference_files(folder)
    if not files:
        kinds = ", ".join(pictures.SUFFIXES)
        raise UserError(f"{folder / 'ref'}: no reference there; put 1 or more pictures in it ({kinds})")
    background = folders.picture_file(folder, "background")
    prompt = folders.prompt_of(folders.prompt_bytes(folder))
    scene = None if background is None else _picture(background)
    return Request(_name(folder), prompt, [_picture(file) for file in files], scene)


def from_list(path: str | Path, limit: int | None = None) -> Requests:
    """The requests of a JSON list."""
    file = Path(path)
    try:
        entries = TypeAdapter(list[Entry]).validate_json(decoded(read_file(file, "give a JSON list", MAX_LIST)))
    except ValidationError as error:
        raise UserError(f"{file}: entry {first_mistake(error)}") from error
    if not entries:
        raise UserError(f"{file}: the list is empty; add an entry with references, background and prompt")
    names = [entry.id or f"{number:05d}" for number, entry in enumerate(entries)][:limit]

    def request(name: str, entry: Entry) -> Request:
        references = [_picture(file.parent / reference) for reference in entry.references]
        background = None if entry.background is None else _picture(file.parent / entry.background)
        return Request(name, entry.prompt, references, background, entry.seed)

    readers = [(name, partial(request, name, entry)) for name, entry in zip(names, entries, strict=False)]
    return _from_files(readers, str(file))


def _from_files(readers: Sequence[tuple[str, Callable[[], Request]]], where: str) -> Requests:
    """Requests from pairs of an id and a function that reads the request; UserError if an id comes twice."""
    names = [name for name, _ in readers]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(f"{where}: the id {twice!r} stands there twice; give every entry its own")

    def read(wanted: Callable[[int], bool]) -> Iterator[tuple[int, Request]]:
        return ((number, read_request()) for number, (_, read_request) in enumerate(readers) if wanted(number))

    return Requests(names, read)


def _picture(path: Path) -> Image.Image:
    data = read_file(path, "give the picture's file", pictures.MAX_BYTES)
    return pictures.on_white(pictures.decode(data, str(path)))
