"""Drawing pictures with a trained model: a single one in Python, or a folder of them.

from tokenar import Sampler

sampler = Sampler("runs/quickstart/training/model")
sampler.draw([cat, cup], table, "a cat beside a cup", seed=3).save("drawn.png")
"""

from __future__ import annotations

import copy
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.documents import parse_json
from data_schemas.io.files import read_file, sweep, write_atomically
from data_schemas.io.new_folders import opened_folder
from data_schemas.progress import Progress
from data_schemas.shards import file_name
from tokenar.config import SampleConfig
from tokenar.data import samples
from tokenar.device import own_device
from tokenar.model.checkpoints import Checkpoint
from tokenar.model.config import ModelConfig
from tokenar.model.folder import Model, load_model
from tokenar.model.transformer import TokenAR
from tokenar.processes import workers
from tokenar.sample.decoder import Decoder
from tokenar.sample.preview import Growing, Preview
from tokenar.sample.requests import Request, Requests, from_shards

NEXT_SEED = 1_000_000
"""The difference between the seeds of two pictures of one request."""
STEPS = 1000
"""Progress bar steps for one picture."""


@dataclass
class EncodedRequest:
    """A request as the model reads it: source codes [R+1, N] int64, or [R, N] if it reads no background, text features
    [text_tokens, C], and the text mask [text_tokens] bool, False at padding. ``number`` is the request's number,
    ``pixels`` [R+1 or R, 3, S, S] uint8 are its images."""

    number: int
    request: Request
    pixels: Tensor
    sources: Tensor
    text: Tensor
    text_mask: Tensor


class Sampler:
    """Draws pictures with one model, which is loaded once, on a GPU if there is one.

    The precision is ``config.precision``, or bfloat16 on a GPU and float32 on a CPU. The text encoder of a Model that
    was loaded before keeps its own. The memory for drawing is kept between calls and reused for batches of the same
    shape.
    """

    def __init__(self, model: str | Path | Checkpoint | Model, config: SampleConfig | None = None):
        chosen = None if config is None or config.precision is None else getattr(torch, config.precision)
        self.model = model if isinstance(model, Model) else load_model(model, chosen or torch.bfloat16)
        self.config = (config or SampleConfig()).of_model(self.model.net.config)
        self.device = own_device()
        on_gpu, quantised = self.device.type == "cuda", self.config.weights != "full"
        # The caller's model must not be changed.
        changed = on_gpu or quantised or chosen is not None
        net = copy.deepcopy(self.model.net) if isinstance(model, Model) and changed else self.model.net
        self.net = net.to(self.device, chosen or (torch.bfloat16 if on_gpu else None)).eval()
        if quantised:
            quantise(self.net, self.config.weights)
        self._decoder: Decoder | None = None

    def draw(
        self, references: Sequence[Image.Image], background: Image.Image, prompt: str, seed: int | None = None
    ) -> Image.Image:
        """Draw one picture (RGB, a square of the tokenizer's ``image_size`` pixels), with ``config.seed`` if no seed is
        given. The images may have any size and mode; they are turned upright, and transparent parts become white, as in
        files. UserError for one that cannot be read."""

        def opaque(picture: Image.Image, name: str) -> Image.Image:
            return pictures.on_white(pictures.as_seen(picture, name))

        shown = [opaque(picture, f"reference {number}") for number, picture in enumerate(references)]
        request = Request("the picture", prompt, shown, opaque(background, "background"))
        encoded = self.encode([(0, request)])
        return self.pictures(encoded, [self.config.seed if seed is None else seed])[0]

    def encode(self, requests: Sequence[tuple[int, Request]]) -> list[EncodedRequest]:
        """Encode numbered requests. UserError if one has more references than the model takes, or none, or lacks the
        background that the model reads; one that it does not read is left out."""
        most, encoded = self.net.config.max_references, []
        for number, request in requests:
            count = len(request.references)
            if not 1 <= count <= most:
                raise UserError(f"{request.sample_id}: {count} references; the model takes 1 to {most}")
            pixels = samples.pixels_of(sources_of(request, self.net.config), self.model.tokenizer.image_size)
            codes = self.model.tokenizer.encode(samples.as_float(pixels))
            text, mask = self.model.text.encode_with_mask([request.prompt])
            encoded.append(EncodedRequest(number, request, pixels, codes, text[0], mask[0]))
        return encoded

    def pictures(
        self,
        requests: Sequence[EncodedRequest],
        seeds: Sequence[int],
        step: Callable[[float], object] = lambda fraction: None,
        preview: Preview | None = None,
    ) -> list[Image.Image]:
        """Draw a batch of requests that have the same number of references, with the same number of seeds each, as RGB.

        ``seeds`` has those of one request side by side, and the pictures come in the same order. ``step`` is called
        after each token with the fraction that is done.
        """
        for growing in self.growing(requests, seeds):
            step(growing.done)
            if preview is not None:
                preview.show(growing)
        return growing.pictures()

    def growing(self, requests: Sequence[EncodedRequest], seeds: Sequence[int]) -> Iterator[Growing]:
        """Draw as ``pictures`` does, and give the unfinished pictures after every token."""
        sources, text, mask = (
            torch.stack([getattr(request, name) for request in requests]).to(self.device)
            for name in ("sources", "text", "text_mask")
        )
        each = len(seeds) // len(requests)
        decoder = self._decoder_for(len(requests), len(requests[0].request.references), each)
        images = torch.stack([samples.as_float(request.pixels) for request in requests])
        growing = Growing(self.model.tokenizer, images.repeat_interleave(each, 0))
        before = decoder.count - self.net.config.image_tokens  # tokens of copies, which come first
        for number, (token, _) in enumerate(decoder.decode(sources, text, seeds, text_mask=mask), 1):
            if number > before:
                growing.tokens.append(token.clone())
            growing.done = number / decoder.count
            yield growing

    def tune(self, config: SampleConfig) -> None:
        """Draw with other settings from now on. The weights keep the format and the precision that they have."""
        config = config.of_model(self.net.config)
        if config != self.config:
            self.config, self._decoder = config, None

    def _decoder_for(self, inputs: int, references: int, seeds: int) -> Decoder:
        """A decoder for this shape; the last one is kept."""
        shape = (inputs, references, seeds)
        if self._decoder is None or self._decoder.shape != shape:
            self._decoder = None  # its memory is needed for the new one
            self._decoder = Decoder(self.net, inputs, references, self.config, seeds)
        return self._decoder


def sources_of(request: Request, config: ModelConfig) -> list[Image.Image]:
    """The images of a request that the model reads; UserError if it reads a background and there is none."""
    if not config.background:
        return list(request.references)
    if request.background is None:
        raise UserError(
            f"{request.sample_id}: no background.png; add the scene to draw into (a plain white picture is one too)"
        )
    return [*request.references, request.background]


def quantise(net: TokenAR, weights: str) -> None:
    """Store the weights of the blocks and the output head as int8 or float8 with a scale for each row, in place.

    Products are still computed in the activations' type. UserError if torchao is not installed.
    """
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UserError(f"weights {weights}: torchao is not installed; pip install 'instructar[paper]'") from error
    kinds = {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig}
    for part in (net.layers, net.output):
        if part is not None:
            quantize_(part, kinds[weights](set_inductor_config=False))


def sample_pictures(
    model: str | Path | Checkpoint | Model,
    requests: str | Sequence[str] | Requests,
    out: str | Path,
    config: SampleConfig | None = None,
    *,
    seeds: int = 1,
    limit: int | None = None,
    preview: bool = False,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Draw a picture for every request, or for every sample of the shards that globs name.

    Writes ``<sample_id>.png`` to the folder ``out`` (a slash in an id as ``%2F``), or ``<sample_id>-<k>.png`` with
    several seeds, and the list of all pictures to ``out/samples.json``; returns that list. Every PNG has its recipe in
    its metadata, and a picture that exists with the same recipe is not drawn again. Request i is drawn with its own
    seed if it has one, else with ``config.seed + i``; its further pictures have seeds NEXT_SEED apart. Under torchrun
    every process draws a part of the requests. ``preview`` shows the first picture of each batch while it is drawn.
    UserError for input that cannot be used.
    """
    folder = Path(out)
    if not isinstance(requests, Requests):
        requests = from_shards(requests, limit)
    with opened_folder(folder), workers() as group:
        drawing = Drawing(Sampler(model, config), folder, seeds, preview)
        if group.first:
            sweep(folder)
            (folder / "samples.json").unlink(missing_ok=True)  # written again when all pictures are there
        group.wait()
        pictures = len(range(group.rank, len(requests.sample_ids), group.world)) * seeds
        # The preview takes the place of the progress bar in a terminal.
        shown = group.first and not quiet and not (preview and sys.stderr.isatty())
        every = STEPS * max(1, pictures // 20)
        with Progress("sample", pictures * STEPS, every=every, unit=STEPS, show=shown) as bar:
            records = drawing.all(requests.read(lambda number: number % group.world == group.rank), bar)
        by_number = {number: own for part in group.gathered(records) for number, own in part.items()}
        listed = [record for number in sorted(by_number) for record in by_number[number]]
        if group.first:
            content = json.dumps(listed, indent=2, ensure_ascii=False) + "\n"
            write_atomically(folder / "samples.json", lambda path: path.write_text(content))
    return listed


class Drawing:
    """One process's part of ``sample_pictures``."""

    def __init__(self, sampler: Sampler, folder: Path, seeds: int, preview: bool):
        self.sampler, self.folder, self.seeds = sampler, folder, seeds
        self.preview = Preview(folder / "preview.png") if preview else None

    def all(self, requests: Iterable[tuple[int, Request]], bar: Progress) -> dict[int, list[dict[str, Any]]]:
        """Draw all requests, in batches with the same number of references; returns the records by request number."""
        records: dict[int, list[dict[str, Any]]] = {}
        waiting: dict[int, list[tuple[int, Request]]] = defaultdict(list)
        for number, request in requests:
            records[number] = self.records(number, request, bar)
            if all(_exists(self.folder / record["file"], record) for record in records[number]):
                bar.advance("there already", by=self.seeds * STEPS)
                continue
            same = waiting[len(request.references)]
            same.append((number, request))
            if len(same) == self.sampler.config.batch:
                self.batch(same, records, bar)
                same.clear()
        for same in waiting.values():
            if same:
                self.batch(same, records, bar)
        return records

    def records(self, number: int, request: Request, bar: Progress) -> list[dict[str, Any]]:
        """The recipes of a request's pictures; says so if the prompt is too long to be read."""
        text = self.sampler.model.text
        if (length := text.length(request.prompt)) > text.tokens:
            bar.line(f"{request.sample_id}: the prompt has {length} tokens, those after {text.tokens} are not read")
        return recipes(self.sampler, number, request, self.seeds)

    def batch(self, chosen: list[tuple[int, Request]], records: dict[int, list[dict[str, Any]]], bar: Progress) -> None:
        """Draw and write one batch."""
        batch_records = [record for number, _ in chosen for record in records[number]]
        seeds, done = [record["seed"] for record in batch_records], 0

        def step(fraction: float) -> None:
            nonlocal done
            now = len(batch_records) * int(fraction * STEPS)
            bar.advance(by=now - done)
            done = now

        drawn = self.sampler.pictures(self.sampler.encode(chosen), seeds, step, self.preview)
        for record, picture in zip(batch_records, drawn, strict=True):
            write_picture(self.folder, record, picture)


def recipes(sampler: Sampler, number: int, request: Request, seeds: int) -> list[dict[str, Any]]:
    """The recipe of each picture of request ``number``: its file, and all that decides what it shows."""
    settings = sampler.config.model_dump(exclude={"seed", "batch"})
    first = sampler.config.seed + number if request.seed is None else request.seed
    return [
        {
            "sample_id": request.sample_id, "prompt": request.prompt, "seed": first + k * NEXT_SEED,
            "file": f"{file_name(request.sample_id)}{f'-{k}' if seeds > 1 else ''}.png",
            "model": sampler.model.fingerprint, "inputs": request.fingerprint, "settings": settings,
        }
        for k in range(seeds)
    ]  # fmt: skip


def write_picture(folder: Path, record: dict[str, Any], picture: Image.Image) -> Path:
    """Write a drawn picture as the PNG that its recipe names, with the recipe in its metadata."""
    path, recipe = folder / record["file"], PngInfo()
    recipe.add_itxt("tokenar", json.dumps(record, sort_keys=True, ensure_ascii=False))
    write_atomically(path, partial(picture.save, format="PNG", pnginfo=recipe))
    return path


def _exists(path: Path, record: dict[str, Any]) -> bool:
    """Whether ``path`` is a complete picture with this record in its metadata."""
    try:
        picture = pictures.decode(read_file(path, "draw it again", pictures.MAX_BYTES), str(path))
        return parse_json(picture.info.get("tokenar", "null"), str(path)) == record
    except UserError:
        return False
