"""The methods that an evaluation compares: models, which draw pictures first, and folders of drawn pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.shards import file_name
from tokenar.model.checkpoints import Checkpoint
from tokenar.model.folder import model_fingerprint, model_settings

NAME = re.compile(r"[\w][\w .+-]*")
PARTS_OF_A_RUN = ("model", "samples", "training", "evaluation")
"""Names of folders inside a run, which say nothing about which run it is."""

Folders = Mapping[str, str | Path] | Mapping[str, Path] | Sequence[str | Path]
Models = Mapping[str, str | Path | Checkpoint] | Folders
"""Folders of models, or published checkpoints by name."""


@dataclass(frozen=True)
class Method:
    """A row of the tables. ``pictures`` is the folder with its drawn pictures.

    ``model`` is the folder of the model that draws them, and ``fingerprint`` identifies its weights; both are None for
    a folder of predictions. A model that takes one reference is a method for the samples with one alone (Table 2);
    ``one_reference`` says that it is such a one.
    """

    name: str
    pictures: Path
    model: Path | Checkpoint | None = None
    fingerprint: str | None = None
    one_reference: bool = False

    def picture(self, sample_id: str) -> Path:
        return self.pictures / f"{file_name(sample_id)}.png"

    def draws(self, references: int) -> bool:
        """Whether it is evaluated on samples with so many references."""
        return references == 1 or not self.one_reference

    def numbers(self, references: Sequence[int]) -> list[int]:
        """The numbers of the samples that it is evaluated on, of those with so many ``references`` each. UserError if
        there is none."""
        numbers = [n for n, count in enumerate(references) if self.draws(count)]
        if references and not numbers:
            raise UserError(f"{self.name}: its model takes 1 reference, and all samples have more; add shards with one")
        return numbers


def named(folders: Folders) -> dict[str, Path]:
    """Name of each method -> its folder.

    A folder without a name is named after its run: ``runs/mine/training/model`` becomes "mine". UserError if two
    folders get the same name.
    """
    if isinstance(folders, Mapping):
        return {name: Path(path) for name, path in folders.items()}
    by_name: dict[str, Path] = {}
    for path in map(Path, folders):
        parts = (path.with_suffix("") if path.is_file() else path).resolve().parts
        name = next((part for part in reversed(parts[1:]) if part not in PARTS_OF_A_RUN), parts[-1])
        if name in by_name:
            raise UserError(f"{path}: a second method would be called {name!r}; give each its own: NAME=DIR")
        by_name[name] = path
    return by_name


def methods_of(models: Models, predictions: Folders, out: Path) -> list[Method]:
    """The methods of an evaluation into ``out``: models first, then predictions. UserError for unusable names."""
    by_model: dict[str, Path | Checkpoint]
    if isinstance(models, Mapping):
        by_model = {name: model if isinstance(model, Checkpoint) else Path(model) for name, model in models.items()}
    else:
        by_model = {**named(models)}
    by_predictions = named(predictions)
    for name in (*by_model, *by_predictions):
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} cannot name a method; use letters, digits, spaces and . + -")
    if both := by_model.keys() & by_predictions.keys():
        raise UserError(f"{min(both)!r} names a model and predictions; give each a name of its own: NAME=DIR")
    if not by_model and not by_predictions:
        raise UserError("nothing to evaluate; give models, folders of predictions, or both")
    drawing = [
        Method(name, out / name / "samples", path, model_fingerprint(path), model_settings(path).max_references == 1)
        for name, path in by_model.items()
    ]
    return drawing + [Method(name, path) for name, path in by_predictions.items()]
