"""What the playground's page does, without the page: every function takes and gives plain values and pictures.

A mistake of the person at the page is a UserError.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io import pictures
from tokenar.attention.maps import checked_boxes
from tokenar.config import SampleConfig
from tokenar.playground import recipe
from tokenar.playground.artist import Artist, Progress, Task
from tokenar.playground.examples import Example
from tokenar.playground.inputs import ROOM, Boxes, clean_prompt, digest, read_picture, with_room
from tokenar.sample.requests import Request

SLOTS = 2
"""References that the page has places for."""
BACKGROUND = "background"


@dataclass(frozen=True)
class Cutting:
    """How a subject is cut out of a picture: ``subject`` gives it in RGBA, ``without`` the picture in RGB with the
    subject black. UserError where none is found."""

    subject: Callable[[Image.Image], Image.Image]
    without: Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Placed:
    """Where the subjects belong in one background, known by its digest."""

    background: str
    boxes: Boxes


@dataclass(frozen=True)
class Drawn:
    """A finished drawing."""

    task: Task
    pictures: Sequence[Image.Image]


@dataclass
class Studio:
    """The models to choose from by name, the examples, the cutting, the folder for recipes, and one for files that
    live as long as the page needs them."""

    models: dict[str, Path]
    examples: Sequence[Example]
    cutting: Cutting
    out: Path
    scratch: Path
    artist: Artist = field(default_factory=Artist)

    def model(self, name: str) -> Path:
        if name not in self.models:
            raise UserError("model: choose one of the list")
        return self.models[name]

    def cut_out(self, path: str | None, number: int) -> Image.Image:
        """Reference ``number`` as its subject alone, in RGBA."""
        return self.cutting.subject(read_picture(path, f"reference {number + 1}"))

    def black_out(self, path: str | None) -> Image.Image:
        """The background with its subject black."""
        return self.cutting.without(read_picture(path, BACKGROUND))

    def make_room(self, path: str | None) -> tuple[Image.Image, Placed]:
        """The background with two black places, and where they are."""
        picture = with_room(read_picture(path, BACKGROUND))
        return picture, Placed(digest(picture), ROOM)

    def example(self, number: int) -> tuple[list[Image.Image | None], Image.Image, str, Image.Image, Placed | None]:
        """References (None for a place without one), background, prompt and true picture, and where subjects are."""
        sample = self.examples[number].opened()
        boxes = checked_boxes(sample.info, len(sample.references), sample.sample_id)
        placed = None if boxes is None else Placed(digest(sample.background), tuple(map(_box, boxes)))
        references = [*sample.references, *[None] * (SLOTS - len(sample.references))]
        return references, sample.background, self.examples[number].prompt, sample.target, placed

    def task(
        self, model: str, references: Sequence[str | None], background: str | None, prompt: str | None,
        settings: dict[str, Any], seeds: int, placed: Placed | None,
    ) -> Task:  # fmt: skip
        """The task that the page's fields describe."""
        given = [(n, path) for n, path in enumerate(references) if path is not None]
        if not given:
            raise UserError("reference 1: there is no picture yet; drop one, or choose an example")
        shown = [pictures.on_white(read_picture(path, f"reference {n + 1}")) for n, path in given]
        scene = pictures.on_white(read_picture(background, BACKGROUND))
        request = Request("", clean_prompt(prompt), shown, scene)
        request.sample_id = recipe.name_of(request)
        boxes = placed.boxes if placed is not None and placed.background == digest(scene) else None
        return Task(self.model(model), request, SampleConfig.parse(settings, "settings"), seeds, boxes)

    def draw(self, task: Task, stopped: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
        """Draw a task. The files of the last step are there until the next step is asked for."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            yield from self.artist.draw(task, Path(folder), stopped)

    def looks(self, drawn: Drawn, number: int) -> Iterator[list[tuple[Path, str]]]:
        """The figures of where picture ``number`` looked, with their names; files as those of ``draw``."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            yield self.artist.looks(drawn.task, drawn.pictures[number], Path(folder))

    def save(self, drawn: Drawn | None) -> str:
        """Save the inputs of a drawing; returns the command that draws it again."""
        if drawn is None:
            raise UserError("recipe: there is no picture yet; draw one")
        task = drawn.task
        return recipe.command(task.model, recipe.save_inputs(task.request, self.out), task.config, task.seeds)


def _box(box: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return left, top, right, bottom
