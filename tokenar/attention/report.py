"""Measures the attention maps of all samples of shards and writes them as arrays and figures (tokenar-attention)."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.files import write_atomically
from data_schemas.io.new_folders import make_folder
from data_schemas.progress import Progress
from data_schemas.shards import ShardSample, file_name
from tokenar.attention import figures
from tokenar.attention.maps import AttentionMaps, checked_boxes, identity, measure, target_regions
from tokenar.data.samples import collate, encode_sample, read_samples
from tokenar.device import own_device
from tokenar.evaluate.pictures import noted, read_drawn, remove_earlier, unlisted
from tokenar.model.checkpoints import Checkpoint
from tokenar.model.folder import Model, load_model
from tokenar.sample.requests import from_shards

SHOWN = 4
"""Layers in the heat maps if none are given: the first, the last, and evenly spaced ones between them."""


@dataclass
class Measured:
    """What is kept of one sample for the means: mass [L, G, S] with its regions and segments, and the identity shares
    [L] of references and of their copies (see maps.identity)."""

    sample_id: str
    regions: list[str]
    segments: list[str]
    mass: np.ndarray
    identity: np.ndarray | None
    identity_copies: np.ndarray | None


def write_maps(
    model: str | Path | Checkpoint,
    shards: str,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    heads: bool = False,
    predictions: str | Path | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a model's attention in every sample of the shards. Returns what is written to ``out/attention.json``.

    The target is the sample's true picture, or ``<sample_id>.png`` in the folder ``predictions``. For each sample,
    ``out/samples`` gets ``<sample_id>.safetensors`` (see AttentionMaps.save; with ``heads`` for every head), heat maps
    of ``layers`` as ``.sources.png`` and ``.picture.png``, and a bar chart as ``.mass.png``. The means over the samples
    are in attention.json and attention.png. UserError for a model, shards, layers or folders that cannot be used.
    """
    loaded, drawn = load_model(model), None if predictions is None else Path(predictions)
    shown = shown_layers(layers, loaded.net.config.layers)
    if drawn is not None and not drawn.is_dir():
        raise UserError(f"{drawn}: no such folder; give the folder that tokenar-sample wrote")
    loaded.net.to(own_device())
    folder, sample_ids = Path(out) / "samples", from_shards(shards, limit).sample_ids
    if drawn is not None and (missing := unlisted(drawn, sample_ids)):
        raise UserError(f"{drawn}: no prediction {missing[0]}.png of the last call; draw it with tokenar-sample")
    make_folder(folder)
    _drop_earlier(Path(out), sample_ids)
    measured = []
    with Progress("attention", len(sample_ids), every=10, show=not quiet) as bar:
        for item in read_samples(shards, limit):
            if drawn is not None:
                item = replace(item, target=read_drawn(drawn / f"{file_name(item.sample_id)}.png"))
            measured.append(_sample(item, loaded, folder, shown, heads, index=drawn is None))
            bar.advance()
    about = {"model": str(model), "shards": shards, "predictions": None if drawn is None else str(drawn)}
    return _summary(measured, about, Path(out))


def _drop_earlier(out: Path, sample_ids: Sequence[str]) -> None:
    """Remove the means of an earlier call, and its files of samples that are not measured this time."""
    before = {str(entry.get("sample_id")) for entry in noted(out / "attention.json", "per_sample")} - set(sample_ids)
    endings = ("safetensors", "sources.png", "picture.png", "mass.png")
    remove_earlier(out / "samples", [f"{file_name(sample_id)}.{ending}" for sample_id in before for ending in endings])
    remove_earlier(out, ["attention.json"])


def shown_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """The layers to show of ``count``: those given, or a few. UserError for one that the model has not."""
    if layers is None:
        return sorted({round(i * (count - 1) / (SHOWN - 1)) for i in range(SHOWN)})
    for layer in layers:
        if not 0 <= layer < count:
            raise UserError(f"layer {layer}: the model has layers 0 to {count - 1}; give --layers some of these")
    return list(layers)


def _sample(item: ShardSample, model: Model, folder: Path, shown: Sequence[int], heads: bool, index: bool) -> Measured:
    """Measure one sample and write its files."""
    net, count = model.net, len(item.references)
    encoded = encode_sample(item, model.tokenizer, model.text, net.config.max_references)
    batch = collate([encoded], net.config.background).to(net.norm.weight.device)
    boxes, layout = checked_boxes(item.info, count, item.sample_id), net.layout(count)
    # A drawn picture is measured as it was drawn, and some models draw without the index embedding.
    maps = measure(net, batch, boxes, heads=heads, index=index or net.config.index_at_inference)
    stem = folder / file_name(item.sample_id)
    maps.save(stem.with_name(f"{stem.name}.safetensors"), {"sample_id": item.sample_id, "prompt": item.prompt})
    averaged = maps.averaged()
    _draw(stem, averaged, item, target_regions(layout, boxes), shown)
    shares = [identity(averaged, kind) for kind in ("reference", "copy of reference")]
    of_references, of_copies = (None if share is None else share.numpy() for share in shares)
    return Measured(item.sample_id, maps.regions, maps.segments, averaged.mass.numpy(), of_references, of_copies)


def _draw(
    stem: Path, maps: AttentionMaps, item: ShardSample, regions: Mapping[str, torch.Tensor], shown: Sequence[int]
) -> None:
    """Write the three figures of one sample."""
    chosen, icons, sources = looked_at(maps, item.references, item.background, item.target, regions)

    def write(name: str, draw: Any, *arguments: Any) -> None:
        write_atomically(stem.with_name(f"{stem.name}.{name}.png"), lambda path: draw(path, *arguments))

    write("sources", figures.source_maps, chosen, icons, sources, shown)
    write("picture", figures.picture_maps, maps.looks[:, -1].numpy(), maps.segments, item.target, shown)
    title = textwrap.shorten(item.prompt, 100)
    write("mass", figures.mass_chart, maps.mass.numpy(), maps.regions, maps.segments, title)


def looked_at(
    maps: AttentionMaps, references: Sequence[Image.Image], background: Image.Image, target: Image.Image,
    regions: Mapping[str, torch.Tensor],
) -> tuple[np.ndarray, dict[str, Image.Image], dict[str, Image.Image]]:  # fmt: skip
    """What figures.source_maps shows of a picture: maps [L, G, sources, g, g], and pictures of the regions and the
    sources by name. With boxes the subjects and the rest stand for the whole picture."""
    side = maps.maps.shape[-1]
    sources = {f"reference {i}": picture for i, picture in enumerate(references)}
    if "background" in maps.segments:
        sources["background"] = background
    parts = [name for name in maps.regions if name != "picture" or "subject 0" not in maps.regions]
    icons = {}
    for name in parts:
        copied, cells = sources.get(name.removeprefix("copy of ")), regions[name][-side * side :].view(side, side)
        icons[name] = copied or figures.highlight(target, cells.numpy())
    return maps.maps[:, [maps.regions.index(name) for name in parts]].numpy(), icons, sources


def _summary(measured: Sequence[Measured], about: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write the means over the samples to attention.json and attention.png; returns the content of the former.

    A region's mean is over the samples that have the region. A segment that a sample lacks counts as 0 there.
    """
    regions, segments = _names([s.regions for s in measured]), _names([s.segments for s in measured])
    totals = np.zeros((len(measured[0].mass), len(regions), len(segments)))
    counts = np.zeros(len(regions), dtype=int)
    for sample in measured:
        rows = [regions.index(name) for name in sample.regions]
        columns = [segments.index(name) for name in sample.segments]
        totals[:, np.array(rows)[:, None], columns] += sample.mass
        counts[rows] += 1
    mass = totals / counts[:, None]
    result: dict[str, Any] = dict(about) | {"samples": len(measured), "layers": len(mass)}
    for key in ("identity", "identity_copies"):
        shares = [share for sample in measured if (share := getattr(sample, key)) is not None]
        by_layer = np.mean(shares, axis=0) if shares else None
        result[key] = None if by_layer is None else float(by_layer.mean())
        result[f"{key}_by_layer"] = None if by_layer is None else by_layer.tolist()
    with_identity = [sample.segments for sample in measured if sample.identity is not None]
    chances = [1 / sum(name.startswith("reference ") for name in segments_of) for segments_of in with_identity]
    result["identity_chance"] = float(np.mean(chances)) if chances else None
    result["mass"] = {
        region: {"samples": int(counts[row])}
        | {segment: mass[:, row, column].tolist() for column, segment in enumerate(segments)}
        for row, region in enumerate(regions)
    }
    result["per_sample"] = [
        {"sample_id": s.sample_id, "identity": None if s.identity is None else float(s.identity.mean())}
        for s in measured
    ]
    title = f"mean of {len(measured)} samples"
    write_atomically(
        out / "attention.png",
        lambda path: figures.mass_chart(path, mass.astype(np.float32), regions, segments, title),
    )
    content = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / "attention.json", lambda path: path.write_text(content))
    return result


def _names(lists: Sequence[Sequence[str]]) -> list[str]:
    """Every name once, in the order of the longest list."""
    longest = max(lists, key=len)
    return list(dict.fromkeys([*longest, *(name for names in lists for name in names)]))
