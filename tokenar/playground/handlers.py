"""What happens when something of the playground's page is used: the studio's answers in gradio's terms."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from tokenar.playground.inputs import read_picture
from tokenar.playground.models import about
from tokenar.playground.studio import SLOTS, Drawn, Placed, Studio

SETTINGS = ("seed", "guidance", "image_guidance", "temperature", "top_k", "top_p", "copies")
"""The settings of the page's fields, in their order."""
P = ParamSpec("P")
T = TypeVar("T")


def status(text: str) -> str:
    """A line under the button, read aloud where that is wanted."""
    return f'<p role="status">{html.escape(text)}</p>'


def line(error: BaseException) -> str:
    """A mistake as gradio shows it, which takes a message for HTML."""
    return html.escape(one_line(error))


def told(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with a UserError as one line in the page."""

    @functools.wraps(function)
    def telling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(line(error), print_exception=False) from None

    return telling


class Handlers:
    """The functions that the page's events call."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.stopped: set[str | None] = set()
        """The tabs whose drawing shall stop. Gradio's own way to cancel leaves the button dead for seconds."""

    def stop(self, asked: gr.Request) -> None:
        self.stopped.add(asked.session_hash)

    @told
    def about(self, name: str) -> str:
        return status(about(self.studio.model(name)))

    def dropped(self, path: str | None, what: str) -> Any:
        """Take back a dropped file that is no picture."""
        try:
            read_picture(path, what)
        except UserError as error:
            gr.Warning(line(error))
            return None
        return gr.skip()

    @told
    def cut_out(self, path: str | None, number: int) -> Image.Image:
        return self.studio.cut_out(path, number)

    @told
    def black_out(self, path: str | None) -> Image.Image:
        return self.studio.black_out(path)

    @told
    def make_room(self, path: str | None) -> tuple[Image.Image, Placed]:
        return self.studio.make_room(path)

    @told
    def example(self, chosen: gr.SelectData) -> list[Any]:
        references, background, prompt, true, placed = self.studio.example(chosen.index)
        return [*references, background, prompt, gr.Image(value=true, visible=True), placed]

    def draw(self, asked: gr.Request, model: str, *fields: Any) -> Iterator[list[Any]]:
        """The pictures as they grow: pictures, status, attention, the drawing for later, the recipe's command."""
        references, (background, prompt, *values, count, looks, placed) = fields[:SLOTS], fields[SLOTS:]
        settings = {name: None if value == "" else value for name, value in zip(SETTINGS, values, strict=True)}
        self.stopped.discard(asked.session_hash)
        yield [gr.skip(), status("Reading the model …"), gr.Gallery(visible=False), None, ""]
        drawn = None
        try:
            task = self.studio.task(model, references, background, prompt, settings, count, placed)
            for step in self.studio.draw(task, lambda: asked.session_hash in self.stopped):
                shown = step.files or step.pictures
                named = [(picture, f"seed {seed}") for picture, seed in zip(shown, step.seeds, strict=True)]
                drawn = Drawn(task, step.pictures) if step.files else None
                said = "Drawn." if step.files else f"Drawing: {step.done:.0%}"
                yield [gr.Gallery(named, visible=True), status(f"{said} {step.note}".strip()), gr.skip(), drawn, ""]
            if drawn is None:
                yield [gr.skip(), status("Stopped."), gr.skip(), gr.skip(), gr.skip()]
            elif looks:
                for figures, said in self._looks(drawn, 0):
                    yield [gr.skip(), said, figures, gr.skip(), gr.skip()]
        except UserError as error:
            yield [gr.skip(), status("Not drawn."), gr.skip(), gr.skip(), gr.skip()]
            raise gr.Error(line(error), print_exception=False) from None

    def look_again(self, looks: bool, drawn: Drawn | None, chosen: gr.SelectData) -> Iterator[list[Any]]:
        """The attention of the picture that was chosen among the drawn ones."""
        if not looks or drawn is None:
            yield [gr.skip(), gr.skip()]
            return
        try:
            for figures, said in self._looks(drawn, chosen.index):
                yield [figures, said]
        except UserError as error:
            raise gr.Error(line(error), print_exception=False) from None

    def _looks(self, drawn: Drawn, number: int) -> Iterator[tuple[Any, str]]:
        yield gr.skip(), status("Drawn. Measuring where it looked …")
        for figures in self.studio.looks(drawn, number):
            named = [(path, f"picture {number + 1}: {name}") for path, name in figures]
            yield gr.Gallery(named, visible=True, selected_index=0), status("Drawn.")

    @told
    def save(self, drawn: Drawn | None) -> str:
        return self.studio.save(drawn)
