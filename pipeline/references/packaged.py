"""The photographs that installed packages ship: packaged.yaml says which, and under what licence."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import yaml

from data_schemas.errors import UserError


@cache
def packaged() -> dict:
    """packaged.yaml: "subjects" and "backgrounds" to cut from the photographs, and each photograph's "licences"."""
    return yaml.safe_load((files("pipeline.references") / "packaged.yaml").read_text())


def package_file(package: str, file: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        if (path := Path(folder, file)).is_file():
            return path
    raise UserError(f"packaged picture {package}/{file} is not there; install the project's requirements again")
