"""Photographs that installed packages contain. packaged.yaml lists those that are used, with their licences."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import yaml
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io import pictures
from pipeline.references.boxes import in_pixels


@cache
def packaged() -> dict:
    """packaged.yaml: the "subjects" and "backgrounds" to cut from the photographs, and each photograph's "licences"."""
    return yaml.safe_load((files("pipeline.references") / "packaged.yaml").read_text())


def package_file(package: str, file: str) -> Path:
    """The path of a data file in an installed package, found without importing the package.

    Raises UserError without it.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        if (path := Path(folder, file)).is_file():
            return path
    raise UserError(f"packaged picture {package}/{file} is not there; install the project's requirements again")


@cache
def load_backgrounds() -> tuple[tuple[str, Image.Image], ...]:
    """(name, RGB picture) of each packaged background, photographs without a subject. Callers must not modify them."""
    backgrounds = []
    for entry in packaged()["backgrounds"]:
        path = package_file(entry["package"], entry["file"])
        picture = pictures.decode(path.read_bytes(), path.name).convert("RGB")
        backgrounds.append((entry["name"], picture.crop(in_pixels(entry["box"], picture.size))))
    return tuple(backgrounds)
