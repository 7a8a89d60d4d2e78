"""Draws for the playground, and measures where it looked: one model in memory, one drawing at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.files import replacing
from tokenar.attention import figures
from tokenar.attention.maps import measure, target_regions
from tokenar.attention.report import looked_at, shown_layers
from tokenar.config import SampleConfig
from tokenar.data.samples import Batch, Resized, encode_resized, pixels_of
from tokenar.model.folder import model_files
from tokenar.playground.inputs import Boxes
from tokenar.sample.requests import Request
from tokenar.sample.sampler import Sampler, recipes, write_picture

MAX_SEEDS = 16
EVERY = 0.3
"""Seconds between two looks at unfinished pictures, at least."""


@dataclass(frozen=True)
class Task:
    """What is to be drawn: a request, by a model folder, with settings, for so many seeds. ``boxes`` has the place of
    each reference's subject where that is known."""

    model: Path
    request: Request
    config: SampleConfig
    seeds: int
    boxes: Boxes | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MAX_SEEDS:
            raise UserError(f"pictures: {self.seeds} at once; 1 to {MAX_SEEDS} can be drawn")


@dataclass
class Progress:
    """The pictures of a task so far, and the share that is done; at the end also their ``files``. ``note`` says what a
    person should know of the drawing."""

    done: float
    pictures: list[Image.Image]
    seeds: list[int]
    note: str = ""
    files: list[Path] = field(default_factory=list)


class Artist:
    """Draws with the model that was asked for last, which stays in memory until its files change."""

    def __init__(self) -> None:
        self._sampler: Sampler | None = None
        self._stamp: tuple = ()

    def draw(self, task: Task, folder: Path, stopped: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
        """Draw all seeds of a task together. The last step has written the pictures to ``folder``, with the bytes that
        tokenar-sample writes. ``stopped`` is asked after every token; where it says so, there is no such step."""
        sampler = self._sampler_for(task.model, task.config)
        records = recipes(sampler, 0, task.request, task.seeds)
        seeds, shown = [record["seed"] for record in records], time.monotonic()
        text, note = sampler.model.text, ""
        if (length := text.length(task.request.prompt)) > text.tokens:
            note = f"The prompt has {length} tokens; those after {text.tokens} are not read."
        for growing in sampler.growing(sampler.encode([(0, task.request)]), seeds):
            if stopped():
                return
            if growing.new_row and time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                yield Progress(growing.done, growing.pictures(), seeds, note)
        pictures = growing.pictures()
        files = [write_picture(folder, record, picture) for record, picture in zip(records, pictures, strict=True)]
        yield Progress(1.0, pictures, seeds, note, files)

    def looks(self, task: Task, drawn: Image.Image, folder: Path) -> list[tuple[Path, str]]:
        """Figures of where the regions of a drawn picture looked: the mean over all layers, then some single layers."""
        sampler = self._sampler_for(task.model, task.config)
        net, model, request = sampler.net, sampler.model, task.request
        assert request.background is not None  # the page always has one
        pixels = pixels_of([*request.references, request.background, drawn], model.tokenizer.image_size)
        (encoded,) = encode_resized([Resized(request.sample_id, request.prompt, pixels)], model.tokenizer, model.text)
        weight = net.norm.weight
        codes = encoded.sources[: len(request.references) + net.config.background]
        batch = Batch(codes[None], encoded.text[None].to(weight.dtype), encoded.picture[None],
                      encoded.text_mask[None]).to(weight.device)  # fmt: skip
        boxes = task.boxes if task.boxes and len(task.boxes) == len(request.references) else None
        maps = measure(net, batch, boxes, index=net.config.index_at_inference)
        regions = target_regions(net.layout(len(request.references)), boxes)
        chosen, icons, sources = looked_at(maps, request.references, request.background, drawn, regions)
        layers = shown_layers(None, net.config.layers)
        blocks = [("mean of all layers", [], True), *((f"layer {layer}", [layer], False) for layer in layers)]
        made = []
        for name, shown, mean in blocks:
            path = folder / f"{name.replace(' ', '-')}.png"
            with replacing(path) as temporary:
                figures.source_maps(temporary, chosen, _from_one(icons), _from_one(sources), shown, mean)
            made.append((path, name))
        return made

    def _sampler_for(self, folder: Path, config: SampleConfig) -> Sampler:
        stamp = (folder, *((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in model_files(folder)))
        if self._sampler is None or stamp != self._stamp:
            self._sampler = None  # its memory is needed for the new one
            self._sampler, self._stamp = Sampler(folder, config), stamp
        self._sampler.tune(config)
        return self._sampler


def _from_one(pictures: Mapping[str, Image.Image]) -> dict[str, Image.Image]:
    """Pictures by name, with references and subjects counted from 1 as on the page."""
    return {re.sub(r"\d+$", lambda n: str(int(n[0]) + 1), name): picture for name, picture in pictures.items()}
