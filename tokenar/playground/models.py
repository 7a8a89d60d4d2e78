"""The models that the playground offers: model folders that are named, or found in folders of runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.io.documents import read_json
from data_schemas.io.text import from_path, one_line
from tokenar.model.folder import FILES, START

DEPTH = 6
"""How far down a folder is searched: runs/NAME/training/model is 3, an ablation's model 4."""
MOST = 200
"""Most models that are offered."""
PACKAGED = "installed with the package"
"""The name of the packaged model in the list."""


def find_models(places: Sequence[str]) -> dict[str, Path]:
    """Model folders by the name that a person chooses: each place itself, or those that are found in it.

    Without places the packaged model alone. UserError for a place with no model.
    """
    if not places:
        return {PACKAGED: START}
    found: dict[str, Path] = {}
    for place in places:
        models = list(_models_in(Path(place)))
        if not models:
            raise UserError(
                f"--model {place}: no model there; give the 'model' folder of a finished run, or its parent"
            )
        found |= {one_line(from_path(str(folder)), 200): folder for folder in models}
    if len(found) > MOST:
        raise UserError(f"--model: {len(found)} models, more than the {MOST} that a list can hold; name some of them")
    return found


def _models_in(place: Path) -> Iterator[Path]:
    """The model folders in a folder, ordered by name; those inside a model folder or a hidden one are left out."""
    for root, folders, files in os.walk(place):
        depth = len(Path(root).relative_to(place).parts)
        if set(FILES[:-1]) <= set(files):
            yield Path(root)
            folders.clear()
        elif depth == DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def about(folder: Path) -> str:
    """One line about a model: its size, and what it draws. UserError if its settings cannot be read."""
    settings = read_json(folder / FILES[0], "train or copy the model again")
    try:
        model = settings["model"]
        grid, layers, most = int(model["grid"]), int(model["layers"]), int(model["max_references"])
        size = (folder / FILES[1]).stat().st_size
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{folder}: not a whole model ({one_line(error, 100)}); train or copy it again") from error
    references = "one reference" if most == 1 else f"up to {most} references"
    return f"{grid} × {grid} tokens a picture, {layers} layers, {references}, {size / 1e6:.0f} MB of weights"
