"""Pictures from a trained model: one call for one picture, or a folder full of them.

from tokenar.sample import Sampler

sampler = Sampler("runs/quickstart/training/model")
sampler.draw([cat, cup], table, "a cat beside a cup", seed=3).save("drawn.png")
"""

from __future__ import annotations

import copy
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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
from data_schemas.progress import Progress
from data_schemas.shards import file_name
from tokenar.config import SampleConfig
from tokenar.data import samples
from tokenar.device import own_device
from tokenar.encoders.patches import tensor_picture
from tokenar.model.folder import Model, load_model
from tokenar.model.transformer import TokenAR
from tokenar.processes import workers
from tokenar.sample.decoder import Decoder
from tokenar.sample.preview import Preview
from tokenar.sample.requests import Request, Requests, from_shards

NEXT_SEED = 1_000_000
"""How far the seeds of one request are apart."""
STEPS = 1000
"""In so many steps a picture's progress is counted."""


@dataclass
class Ready:
    """A request as the model reads it: codes [R+1, N], text [text_tokens, C] and where it has words [text_tokens]."""

    number: int
    request: Request
    sources: Tensor
    text: Tensor
    text_mask: Tensor


class Sampler:
    """A model that is loaded once, with the memory that drawing takes; on a GPU if there is one, in bfloat16."""

    def __init__(self, model: str | Path | Model, config: SampleConfig | None = None):
        self.model = model if isinstance(model, Model) else load_model(model)
        self.config = config or SampleConfig()
        self.device = own_device()
        on_gpu, quantised = self.device.type == "cuda", self.config.weights != "full"
        # A given model is somebody else's too, and stays as it is.
        net = copy.deepcopy(self.model.net) if isinstance(model, Model) and (on_gpu or quantised) else self.model.net
        self.net = net.to(self.device, torch.bfloat16 if on_gpu else None).eval()
        if quantised:
            quantise(self.net, self.config.weights)
        self._decoder: Decoder | None = None

    def draw(
        self, references: Sequence[Image.Image], background: Image.Image, prompt: str, seed: int | None = None
    ) -> Image.Image:
        """One picture. Transparent parts of the given ones count as white; the configuration's seed is the default."""
        flat = [pictures.on_white(picture) for picture in references]
        request = Request("the picture", prompt, flat, pictures.on_white(background))
        ready = self.ready([(0, request)])
        return self.pictures(ready, [self.config.seed if seed is None else seed])[0]

    def ready(self, requests: Sequence[tuple[int, Request]]) -> list[Ready]:
        """Encode requests; UserError for a number of references that the model does not take."""
        most, found = self.net.config.max_references, []
        for number, request in requests:
            count = len(request.references)
            if not 1 <= count <= most:
                raise UserError(f"{request.sample_id}: {count} references; the model takes 1 to {most}")
            shown = samples.pixels_of([*request.references, request.background], self.model.tokenizer.image_size)
            codes = self.model.tokenizer.encode(samples.as_float(shown))
            text, mask = self.model.text.encode_with_mask([request.prompt])
            found.append(Ready(number, request, codes, text[0], mask[0]))
        return found

    def pictures(
        self,
        ready: Sequence[Ready],
        seeds: Sequence[int],
        step: Callable[[float], object] = lambda share: None,
        preview: Preview | None = None,
    ) -> list[Image.Image]:
        """Draw for requests with one number of references, n seeds each, side by side; ``step`` hears how far it is."""
        sources, text, mask = (
            torch.stack([getattr(one, name) for one in ready]).to(self.device)
            for name in ("sources", "text", "text_mask")
        )
        decoder = self._decoder_for(len(ready), sources.shape[1] - 1, len(seeds) // len(ready))
        n, drawn = self.net.config.image_tokens, []
        for token, _ in decoder.decode(sources, text, seeds, text_mask=mask):
            drawn.append(token.clone())
            step(len(drawn) / decoder.count)
            if preview is not None:
                preview.show(drawn[decoder.count - n :])
        codes = torch.stack(drawn[-n:], dim=1)
        return [tensor_picture(pixels) for pixels in self.model.tokenizer.decode(codes.cpu())]

    def _decoder_for(self, inputs: int, references: int, seeds: int) -> Decoder:
        shape = (inputs, references, seeds)
        if self._decoder is None or self._decoder.shape != shape:
            self._decoder = None  # its memory first
            self._decoder = Decoder(self.net, inputs, references, self.config, seeds)
        return self._decoder


def quantise(net: TokenAR, weights: str) -> None:
    """Keep weights of blocks and head as int8 or float8 with a scale for each row, in place; products stay as precise
    as they were. UserError without torchao."""
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UserError(f"weights {weights}: torchao is not installed; pip install 'instructar[paper]'") from error
    kinds = {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig}
    for part in (net.layers, net.output):
        if part is not None:
            quantize_(part, kinds[weights](set_inductor_config=False))


def sample_pictures(
    model: str | Path | Model,
    asked: str | Requests,
    out: str | Path,
    config: SampleConfig | None = None,
    *,
    seeds: int = 1,
    limit: int | None = None,
    preview: bool = False,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Draw for every request (or sample of the shards that a glob names); returns what ``out/samples.json`` holds.

    ``out`` gets ``<sample_id>.png`` (an id's slash as ``%2F``) with the recipe in its metadata, with several seeds
    ``<sample_id>-<k>.png``. Number
    i is drawn with its own seed or ``config.seed + i``, and further seeds from there in steps of NEXT_SEED. A picture
    that is there with the same recipe is not drawn again. Under torchrun every process draws its share. ``preview``
    shows the first picture of each batch as it grows. Raises UserError for what cannot be used.
    """
    folder = Path(out)
    requests = from_shards(asked, limit) if isinstance(asked, str) else asked
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give another --out") from error
    with workers() as group:
        drawing = Drawing(Sampler(model, config), folder, seeds, preview)
        if group.first:
            sweep(folder)
            (folder / "samples.json").unlink(missing_ok=True)  # it says what is of this call, once all of it is there
        group.wait()
        total = len(range(group.rank, len(requests.sample_ids), group.world)) * seeds * STEPS
        shown = group.first and not quiet and not (preview and sys.stderr.isatty())  # one of them has the terminal
        with Progress("sample", total, every=STEPS, unit=STEPS, show=shown) as bar:
            records = drawing.all(requests.read(lambda number: number % group.world == group.rank), bar)
        found = {number: own for each in group.gathered(records) for number, own in each.items()}
        listed = [record for number in sorted(found) for record in found[number]]
        if group.first:
            content = json.dumps(listed, indent=2, ensure_ascii=False) + "\n"
            write_atomically(folder / "samples.json", lambda path: path.write_text(content))
    return listed


class Drawing:
    """One process's part of ``sample``."""

    def __init__(self, sampler: Sampler, folder: Path, seeds: int, preview: bool):
        self.sampler, self.folder, self.seeds = sampler, folder, seeds
        self.settings = sampler.config.model_dump(exclude={"seed", "batch"})
        self.preview = Preview(sampler.model.tokenizer, folder / "preview.png") if preview else None

    def all(self, requests: Iterable[tuple[int, Request]], bar: Progress) -> dict[int, list[dict[str, Any]]]:
        """Draw for all requests, in batches with one number of references each; the records by number of request."""
        records: dict[int, list[dict[str, Any]]] = {}
        waiting: dict[int, list[tuple[int, Request]]] = defaultdict(list)
        for number, request in requests:
            records[number] = self.records(number, request, bar)
            if all(_is_there(self.folder / record["file"], record) for record in records[number]):
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
        """What is said of each of a request's pictures."""
        text, first = self.sampler.model.text, request.seed
        if (length := text.length(request.prompt)) > text.tokens:
            bar.line(f"{request.sample_id}: the prompt has {length} tokens, those after {text.tokens} are not read")
        if first is None:
            first = self.sampler.config.seed + number
        return [
            {
                "sample_id": request.sample_id, "prompt": request.prompt, "seed": first + k * NEXT_SEED,
                "file": f"{file_name(request.sample_id)}{f'-{k}' if self.seeds > 1 else ''}.png",
                "model": self.sampler.model.fingerprint, "inputs": request.fingerprint, "settings": self.settings,
            }
            for k in range(self.seeds)
        ]  # fmt: skip

    def batch(self, chosen: list[tuple[int, Request]], records: dict[int, list[dict[str, Any]]], bar: Progress) -> None:
        """Draw and write one batch."""
        told = [record for number, _ in chosen for record in records[number]]
        done = 0

        def step(share: float) -> None:
            nonlocal done
            bar.advance(by=len(told) * (now := int(share * STEPS)) - done)
            done = len(told) * now

        drawn = self.sampler.pictures(self.sampler.ready(chosen), [r["seed"] for r in told], step, self.preview)
        for record, picture in zip(told, drawn, strict=True):
            recipe = PngInfo()
            recipe.add_itxt("tokenar", json.dumps(record, sort_keys=True, ensure_ascii=False))
            write_atomically(self.folder / record["file"], partial(picture.save, format="PNG", pnginfo=recipe))


def _is_there(path: Path, record: dict[str, Any]) -> bool:
    """Whether a picture with this recipe is there, whole."""
    try:
        picture = pictures.decode(read_file(path, "draw it again", pictures.MAX_BYTES), str(path))
        return parse_json(picture.info.get("tokenar", "null"), str(path)) == record
    except UserError:
        return False
