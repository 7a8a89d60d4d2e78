"""One example of the published layout: its files as written from a sample, and the sample that they make."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io import folders, pictures
from data_schemas.io.files import read_file
from data_schemas.io.text import from_path
from data_schemas.shards import reference_count
from pipeline.exchange.samples import members_of

NAMES = {"target.png": "real.png", "background.png": "background.png", "prompt.txt": "description.txt"}
"""Members of a sample that are files of an example, besides the references."""
MAX_PIXELS = 2 * pictures.MAX_PIXELS
"""Most pixels of all pictures of an example together: every one is in memory several times while it is encoded."""


@dataclass(frozen=True)
class Example:
    """The content of an example's files by path inside it, in the order of the references."""

    name: str
    files: Mapping[str, bytes]

    def digest(self) -> str:
        """A digest over the names and contents of the files."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name} {len(content)} ".encode() + content)
        return digest.hexdigest()


def written(name: str, members: Mapping[str, bytes]) -> Example:
    """The files of an example from a sample's members, byte by byte: ref/ref_1.png and so on are the references on
    white, real.png is the target."""
    files = {path: members[member] for member, path in NAMES.items()}
    for k in range(reference_count(members)):
        files[f"ref/ref_{k + 1}.png"] = members[f"reference_{k}.png"]
    return Example(name, files)


def lacking(folder: Path) -> str | None:
    """What an example lacks without which the published program leaves it out; None if it has all."""
    if not folders.reference_files(folder):
        return "no picture in ref/"
    return None if folders.picture_file(folder, "real") else "no real.png"


def read(folder: Path, black_background: bool = False) -> Example:
    """Read an example that lacks nothing. Raises UserError for a file that is missing or cannot be read.

    ``black_background`` allows a missing background.
    """
    background, target = folders.picture_file(folder, "background"), folders.picture_file(folder, "real")
    if background is None and not black_background:
        raise UserError(
            f"{folder}: no background.png, without which the published program stops; add it, or use "
            "--black-background, for models that read no background"
        )
    paths = [*folders.reference_files(folder), *(path for path in (background, target) if path is not None)]
    content = {
        from_path(str(path.relative_to(folder))): read_file(path, "give the picture's file", pictures.MAX_BYTES)
        for path in paths
    }
    return Example(from_path(folder.resolve().name), content | {"description.txt": folders.prompt_bytes(folder)})


def members(example: Example, sample_id: str, split: str) -> dict[str, bytes]:
    """The sample that an example's files make. Raises UserError that names the example and the file."""

    pixels = 0

    def picture(path: str) -> Image.Image:
        nonlocal pixels
        found = pictures.decode(example.files[path], f"{example.name}/{path}")
        pixels += found.width * found.height
        if pixels > MAX_PIXELS:
            raise UserError(f"{example.name}: its pictures have more than {MAX_PIXELS} pixels; make them smaller")
        return found

    stems = {path.rpartition(".")[0]: path for path in example.files}
    references = [picture(path) for path in example.files if path.startswith(f"{folders.REFERENCES}/")]
    background = picture(stems["background"]) if "background" in stems else None
    prompt = folders.prompt_of(example.files["description.txt"])
    info = {"sample_id": sample_id, "split": split, "prompt": prompt, "source": example.name}
    return members_of(sample_id, references, background, picture(stems["real"]), prompt, info)


def sample_name(name: str) -> str:
    """A sample id made of an example's name: letters, digits, ``-`` and ``_`` stay, others become ``_``. It is short
    enough for the header of a tar."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:60] or "_"
