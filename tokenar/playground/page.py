"""The playground's page, written with gradio: its fields, and which of the handlers each of them calls."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from data_schemas.serving import page_app, serve
from data_schemas.settings import MAX_SEED
from tokenar.config import SampleConfig
from tokenar.playground.artist import MAX_SEEDS
from tokenar.playground.gates import POLICY, Gates
from tokenar.playground.handlers import Handlers, status
from tokenar.playground.inputs import MAX_BYTES, MAX_PROMPT
from tokenar.playground.models import about
from tokenar.playground.studio import BACKGROUND, SLOTS, Studio

TITLE = "TokenAR playground"
KEPT = 12 * 3600
"""Seconds after which a dropped or drawn picture is deleted, if the server still runs."""
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
DEFAULT = SampleConfig()
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
MODEL: dict[str, Any] = {**QUIET, "concurrency_id": "model", "concurrency_limit": 1}
"""For events that use the model: one at a time."""
STYLE = Path(__file__).with_name("look.css")


def serve_playground(make: Callable[[Path], Studio], host: str, port: int) -> None:
    """Serve the page of the studio that ``make(scratch folder)`` gives, until Ctrl-C.

    What was dropped into it or drawn is deleted at the end.
    """
    with tempfile.TemporaryDirectory(prefix="tokenar-playground-") as folder:
        kept, scratch = Path(folder, "kept"), Path(folder, "made")
        scratch.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(kept)  # gradio copies there what it shows
        page = build(make(scratch))
        app = gr.mount_gradio_app(
            page_app(TITLE), page, path="/", footer_links=[], max_file_size=MAX_BYTES, ssr_mode=False, show_error=False,
            theme=theme(), css_paths=STYLE,
        )  # fmt: skip
        page.has_launched = True  # only then does gradio refuse to read files that were not dropped into the page
        serve(Gates(app), host, port, "playground", POLICY)


def build(studio: Studio) -> gr.Blocks:
    """The page."""
    handlers = Handlers(studio)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, KEPT), fill_width=True) as page:
        gr.Markdown(f"# {TITLE}")
        placed, drawn = gr.State(None), gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                model = _model(studio, handlers)
                examples = _examples(studio)
                references, background = _pictures(handlers, placed)
                prompt, settings, looks, draw, stop = _fields()
            with gr.Column(scale=4, min_width=320):
                said = gr.Markdown(status("Choose an example, or drop pictures, and draw."), elem_id="status")
                grown = gr.Gallery(label="Drawn", format="png", columns=2, height="auto", object_fit="contain",
                                   interactive=False, buttons=["download"], visible=False, elem_id="drawn")  # fmt: skip
                true = gr.Image(label="The example's true picture", format="png", visible=False, interactive=False,
                                buttons=[], alt_text="The example's true picture", elem_id="true")  # fmt: skip
                figures = gr.Gallery(label="Where it looked", format="png", columns=5, height=640, visible=False,
                                     preview=True, object_fit="contain", interactive=False,
                                     buttons=["download", "fullscreen"], elem_id="looks")  # fmt: skip
                save = gr.Button("Save the recipe", size="sm")
                command = gr.Textbox(label="Command", info="Draws the same from the shell, once the recipe is saved.",
                                     interactive=False, lines=3, buttons=["copy"], elem_id="command")  # fmt: skip
        gr.on(
            [draw.click, prompt.submit], handlers.draw,
            [model, *references, background, prompt, *settings, looks, placed],
            [grown, said, figures, drawn, command], trigger_mode="once", **MODEL,
        )  # fmt: skip
        stop.click(handlers.stop, None, None, **QUIET)
        grown.select(handlers.look_again, [looks, drawn], [figures, said], **MODEL)
        save.click(handlers.save, drawn, command, **QUIET)
        if examples is not None:
            examples.select(handlers.example, None, [*references, background, prompt, true, placed], **QUIET)
    page.queue(max_size=20, api_open=False)
    return page


def theme() -> gr.themes.Base:
    """Gradio's look in the colours of the project's other pages, with the fonts of the person's own machine."""
    colours = {
        "button_primary_background_fill": ("#3052c0", "#9db3ff"),
        "button_primary_background_fill_hover": ("#27449f", "#b4c5ff"),
        "button_primary_text_color": ("#ffffff", "#10131c"),
        "block_info_text_color": ("#5f646c", "#a3a9b2"),
        "block_label_text_color": ("#4a4f57", "#c3c8d0"),
        "block_title_text_color": ("#1d1f23", "#e9eaec"),
        "body_text_color_subdued": ("#5f646c", "#a3a9b2"),
        "input_placeholder_color": ("#5f646c", "#a3a9b2"),
    }
    light = {name: pair[0] for name, pair in colours.items()}
    dark = {f"{name}_dark": pair[1] for name, pair in colours.items()}
    return gr.themes.Default(primary_hue="indigo", neutral_hue="zinc", font=FONTS, font_mono=MONO).set(**light, **dark)


def _model(studio: Studio, handlers: Handlers) -> gr.Dropdown:
    first = next(iter(studio.models))
    model = gr.Dropdown(list(studio.models), value=first, label="Model", elem_id="model")
    described = gr.Markdown(status(about(studio.models[first])))
    model.change(handlers.about, model, described, **QUIET)
    return model


def _examples(studio: Studio) -> gr.Gallery | None:
    if not studio.examples:
        return None
    shown = [(example.thumbnail, example.prompt) for example in studio.examples]
    return gr.Gallery(shown, label="Examples", format="png", columns=6, height="auto", allow_preview=False, buttons=[],
                      object_fit="contain", interactive=False, elem_id="examples")  # fmt: skip


def _pictures(handlers: Handlers, placed: gr.State) -> tuple[list[gr.Image], gr.Image]:
    references = []
    with gr.Row():
        for number in range(SLOTS):
            with gr.Column(min_width=150):
                image = _dropped(handlers, f"reference {number + 1}")
                cut = gr.Button("Cut out the subject", size="sm")
                cut.click(partial(handlers.cut_out, number=number), image, image, **QUIET)
                references.append(image)
        with gr.Column(min_width=150):
            background = _dropped(handlers, BACKGROUND)
            black = gr.Button("Black out the subject", size="sm")
            room = gr.Button("Make room for two", size="sm")
            black.click(handlers.black_out, background, background, **QUIET)
            room.click(handlers.make_room, background, [background, placed], **QUIET)
    gr.Markdown("The model draws the subjects where the background is black.")
    return references, background


def _dropped(handlers: Handlers, what: str) -> gr.Image:
    """A place to drop a picture. It gives the dropped file's path, whatever the file holds."""
    label = what.capitalize()
    image = gr.Image(label=label, alt_text=label, format="png", type="filepath", image_mode=None, height=200,
                     sources=["upload", "clipboard"], buttons=[], elem_id=what.replace(" ", "-"))  # fmt: skip
    # Gradio would decode the file here, without bounds.
    image.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    image.upload(partial(handlers.dropped, what=what), image, image, **QUIET)
    return image


def _fields() -> tuple[gr.Textbox, list[Any], gr.Checkbox, gr.Button, gr.Button]:
    """Prompt, the settings in the order that the handlers read them, the wish for attention, and two buttons."""
    prompt = gr.Textbox(label="Prompt", placeholder="a cat beside a cup", max_length=MAX_PROMPT, lines=1,
                        elem_id="prompt")  # fmt: skip
    with gr.Row():
        count = gr.Slider(1, MAX_SEEDS, 1, step=1, label="Pictures", info="Each has a seed of its own.")
        seed = gr.Number(DEFAULT.seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
    looks = gr.Checkbox(label="Show where it looked", info="Takes some more seconds.")
    with gr.Accordion("More settings", open=False):
        with gr.Row():
            guidance = gr.Number(DEFAULT.guidance, label="Guidance", info="Weight of the text; 1 is off.")
            image = gr.Number(DEFAULT.image_guidance, label="Image guidance", info="Weight of the pictures; 1 is off.")
            # gradio shows an empty number as 0
            temperature = gr.Textbox(label="Temperature", info="Below 1 plainer, above wilder.",
                                     placeholder="the model's own", max_length=20, lines=1)  # fmt: skip
        with gr.Row():
            top_k = gr.Number(DEFAULT.top_k, label="Top k", precision=0, info="0 is off.")
            top_p = gr.Number(DEFAULT.top_p, label="Top p", info="1 is off.")
            copies = gr.Dropdown(["given", "drawn", "verified"], value=DEFAULT.copies, label="Copies",
                                 info="How the references' copies get there.")  # fmt: skip
    with gr.Row():
        draw = gr.Button("Draw", variant="primary")
        stop = gr.Button("Stop", variant="secondary")
    return prompt, [seed, guidance, image, temperature, top_k, top_p, copies, count], looks, draw, stop
