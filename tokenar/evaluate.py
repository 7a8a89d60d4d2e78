"""Drawn pictures against the true ones: pixels, background, and the identity of each subject."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn import functional as F

from data_schemas import pictures
from data_schemas.errors import UserError
from data_schemas.shards import ShardSample
from tokenar import data, metrics
from tokenar.config import SampleConfig
from tokenar.model_folder import Model, load_model, write_atomically
from tokenar.progress import Progress
from tokenar.sample import sample as draw_samples
from tokenar.tokenizers import picture_tensor, tensor_picture

PACKAGES = ("torch", "timm", "numpy", "pillow", "scikit-image", "scikit-learn")


def evaluate(
    model: str | Path | None,
    shards: str,
    out: str | Path,
    *,
    predictions: str | Path | None = None,
    config: SampleConfig | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on shards and return what is written to ``out/metrics.json``.

    Without ``predictions`` (a folder with ``<sample_id>.png``) the pictures are drawn first, into ``out/samples``.
    ``out`` also gets ``per_sample.parquet`` and ``pictures/<sample_id>.png``: references, background, drawn picture,
    tokenizer's round trip of the true picture, true picture. Without a model, predictions are needed and there are no
    losses. Raises UserError naming what cannot be used.
    """
    folder, config = Path(out), config or SampleConfig()
    if model is None and predictions is None:
        raise UserError("give a model, a folder of predictions, or both")
    loaded = load_model(model) if model is not None else None
    drawn = Path(predictions) if predictions is not None else folder / "samples"
    if predictions is None:
        assert loaded is not None
        draw_samples(loaded, shards, drawn, config, limit=limit, quiet=quiet)
    elif not drawn.is_dir():
        raise UserError(f"{drawn}: no such folder; give the folder that tokenar-sample wrote")
    samples = list(data.read_samples(shards, limit))
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    encoder = metrics.IdentityEncoder()
    rows = []
    with Progress("evaluate", len(samples), every=10, show=not quiet) as bar:
        for number, item in enumerate(samples):
            shown = Pictures.of(item, drawn / f"{item.sample_id}.png", loaded)
            other = samples[(number + 1) % len(samples)].references[0]
            rows.append({"sample_id": item.sample_id, **_score(item, shown, other, encoder), **_loss(item, loaded)})
            shown.strip(item).save(folder / "pictures" / f"{item.sample_id}.png")
            bar.advance()
    table = pa.Table.from_pylist(rows)
    write_atomically(folder / "per_sample.parquet", lambda path: pq.write_table(table, path))
    result = _summary(rows) | {
        "samples": len(rows), "shards": shards, "model": str(model) if model is not None else None,
        "predictions": str(drawn), "identity_encoder": encoder.name, "seed": config.seed,
        "sampling": config.model_dump(), "model_config": loaded.net.config.model_dump() if loaded else None,
        "versions": _versions(),
    }  # fmt: skip
    content = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "metrics.json", lambda path: path.write_text(content))
    return result


@dataclass
class Pictures:
    """A sample's pictures at the size of the drawn one."""

    drawn: Image.Image
    target: Image.Image
    background: Image.Image
    alpha: Image.Image
    round_trip: Image.Image | None

    @classmethod
    def of(cls, item: ShardSample, path: Path, model: Model | None) -> Pictures:
        """Read the drawn picture and bring the true ones to its size."""
        if not path.is_file():
            raise UserError(f"{path}: no prediction for sample {item.sample_id}; draw it with tokenar-sample")
        drawn = pictures.decode(path.read_bytes(), str(path)).convert("RGB")
        if drawn.width != drawn.height:
            raise UserError(f"{path}: {drawn.width} x {drawn.height} pixels, expected a square picture")

        def fit(picture: Image.Image) -> Image.Image:
            return picture.resize(drawn.size, Image.Resampling.BICUBIC)

        round_trip = None
        if model is not None:
            pixels = picture_tensor(item.target, model.tokenizer.image_size)[None]
            round_trip = fit(tensor_picture(model.tokenizer.decode(model.tokenizer.encode(pixels))[0]))
        return cls(drawn, fit(item.target), fit(item.background), fit(item.alpha), round_trip)

    def strip(self, item: ShardSample, side: int = 128) -> Image.Image:
        """Everything in a row, ``side`` pixels each, for the eye."""
        row = [*item.references, self.background, self.drawn, self.round_trip, self.target]
        shown = [picture.resize((side, side)) for picture in row if picture is not None]
        strip = Image.new("RGB", (side * len(shown) + 4 * (len(shown) - 1), side), "white")
        for column, picture in enumerate(shown):
            strip.paste(picture, (column * (side + 4), 0))
        return strip


def _score(
    item: ShardSample, shown: Pictures, other: Image.Image, encoder: metrics.IdentityEncoder
) -> dict[str, float | None]:
    """One row: pixel figures of the drawn picture and the round trip, identity figures."""
    truth = np.asarray(shown.target) / 255.0
    background = np.asarray(shown.alpha) < 128
    row: dict[str, float | None] = {}
    for name, picture in (("", shown.drawn), ("round_trip_", shown.round_trip)):
        if picture is None:
            continue
        pixels = np.asarray(picture) / 255.0
        for part, mask in (("", None), ("background_", background), ("subjects_", ~background)):
            row[f"{name}{part}mse"] = metrics.mse(pixels, truth, mask)
            row[f"{name}{part}psnr"] = metrics.psnr(pixels, truth, mask)
            row[f"{name}{part}ssim"] = metrics.ssim(pixels, truth, mask)
    return row | _identity(item, shown, other, encoder)


def _identity(
    item: ShardSample, shown: Pictures, other: Image.Image, encoder: metrics.IdentityEncoder
) -> dict[str, float | None]:
    """Cosine of each subject's region with its reference, the smallest over the subjects.

    ``identity_target`` is the same for the true picture (a model can hardly do better), ``identity_wrong`` for the
    drawn picture against another subject's reference (what likeness is worth nothing). Without boxes: null.
    """
    boxes = item.info.get("boxes")
    if not isinstance(boxes, list) or len(boxes) != len(item.references):
        return {"identity": None, "identity_target": None, "identity_wrong": None}
    count = len(boxes)
    regions = [metrics.crop(picture, box) for picture in (shown.drawn, shown.target) for box in boxes]
    table = encoder.similarity(regions, [*item.references, other])
    wrong = [table[i][(i + 1) % count if count > 1 else count] for i in range(count)]
    return {
        "identity": min(table[i][i] for i in range(count)),
        "identity_target": min(table[count + i][i] for i in range(count)),
        "identity_wrong": min(wrong),
    }


@torch.inference_mode()
def _loss(item: ShardSample, model: Model | None) -> dict[str, float]:
    """Cross entropy of the true tokens in nats a token: all scored ones, and the picture's."""
    if model is None:
        return {}
    encoded = data.encode_sample(item, model.tokenizer, model.text, model.net.config.max_references)
    device = model.net.norm.weight.device
    batch = data.collate([encoded]).to(device)
    wanted = model.net.target_tokens(batch.sources, batch.picture)[0]
    logits = model.net(batch.sources, batch.text, batch.picture, text_mask=batch.text_mask)[0]
    losses = F.cross_entropy(logits, wanted, reduction="none")
    return {"loss": losses.mean().item(), "loss_target": losses[-batch.picture.shape[1] :].mean().item()}


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean of every figure over the samples that have a finite one; null where none has."""
    means: dict[str, float | None] = {}
    for key in rows[0]:
        if key == "sample_id":
            continue
        values = [row[key] for row in rows if row[key] is not None and math.isfinite(row[key])]
        means[key] = float(np.mean(values)) if values else None
    return means


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
