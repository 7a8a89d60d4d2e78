"""The figures of one drawn picture against its sample, as one row. docs/evaluation.md defines each of them.

R references. The parts of a picture are the whole, the background, and each subject.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from data_schemas.io.pictures import square_on_white
from data_schemas.shards import ShardSample
from tokenar.data import samples
from tokenar.encoders.patches import picture_tensor, tensor_picture
from tokenar.evaluate import metrics
from tokenar.evaluate.cache import CachedFeatures
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.encoders import Encoders, one_thread
from tokenar.evaluate.metrics import Features, Pixels
from tokenar.evaluate.pictures import Truth, as_pixels, fit
from tokenar.model.folder import Model

Row = dict[str, float | None]


class Scorer:
    """Computes rows of figures with the encoders and settings of an evaluation."""

    def __init__(self, config: EvalConfig, encoders: Encoders, features: CachedFeatures):
        self.config, self.encoders, self.features = config, encoders, features

    def row(self, truth: Truth, drawn: Image.Image, other: Image.Image) -> Row:
        """All figures of a drawn picture, which has the size of the true one.

        ``other`` is a reference of another sample, RGBA; samples with one reference use it as the wrong reference. A
        figure that does not exist for this sample (an empty part, no boxes) is None.
        """
        row = self.pixel_figures(truth, as_pixels(drawn))
        row |= self._likeness(truth, drawn)
        row |= _mean_of_subjects(row, len(truth.subjects))
        row |= self.identity(truth, drawn, other)
        return {name: value if value is None or math.isfinite(value) else None for name, value in row.items()}

    def pixel_figures(self, truth: Truth, pixels: Pixels) -> Row:
        """MSE, PSNR, SSIM, edge F1 and, with its encoder, LPIPS of every part; and the F1 of the foreground's mask."""
        true, tolerance, lpips = truth.pixels, self.config.edge_tolerance, self.encoders.lpips
        row: Row = {}
        for part, mask in {"whole": None, **truth.parts()}.items():
            shown = pixels if mask is None else metrics.composite(pixels, true, mask)
            row[f"{part}_mse"] = metrics.mse(shown, true, mask)
            row[f"{part}_psnr"] = metrics.psnr(shown, true, mask)
            row[f"{part}_ssim"] = metrics.ssim(shown, true, mask)
            row[f"{part}_edge_f1"] = metrics.edge_f1(shown, true, tolerance, mask)
            if lpips is not None:
                row[f"{part}_lpips"] = lpips(shown, true, mask)
        background = as_pixels(truth.background)
        row["mask_f1"] = metrics.mask_f1(pixels, background, truth.foreground, self.config.mask_threshold)
        return row

    def _likeness(self, truth: Truth, drawn: Image.Image) -> Row:
        """Cosine similarities by encoder: of the whole picture and the background to the true ones, of each subject to
        its reference, and with CLIP of the picture to the prompt."""
        shown = [drawn, truth.without_subjects(drawn)]
        wanted = [truth.target, truth.without_subjects(truth.target)]
        names = ["whole", "background"]
        for number, reference in enumerate(truth.references()[: len(truth.subjects)]):
            shown.append(truth.view(drawn, number))
            wanted.append(reference)
            names.append(f"subject_{number}")
        row: Row = {}
        for figure, encoder in self.encoders.of_pictures().items():
            pairs = zip(self.features.of(encoder, shown), self.features.of(encoder, wanted), strict=True)
            row |= {f"{name}_{figure}": metrics.cosine(*pair) for name, pair in zip(names, pairs, strict=True)}
        if clip := self.encoders.clip:
            text, (picture,) = self.features.text(clip, truth.item.prompt), self.features.of(clip, [drawn])
            row["whole_clip_t"] = metrics.cosine(picture, text)
        return row

    def identity(self, truth: Truth, drawn: Image.Image, other: Image.Image) -> Row:
        """The similarity of each subject to each reference, computed as in the curation's identity stage.

        ``identity`` is the lowest similarity of a subject to its own reference. ``identity_target`` is the same for the
        true picture, about the best that a model can reach. ``identity_wrong`` is the similarity of the drawn subjects
        to references of other subjects, the level of no identity at all. With two references the row also has the
        similarity matrix, the swap margin, and whether the two subjects are swapped.
        """
        count = len(truth.subjects)
        if not count:
            return {"identity": None, "identity_target": None, "identity_wrong": None}
        references = [*truth.references(), square_on_white(other.convert("RGBA"), self.config.padding)]
        encoded = self.features.of(self.encoders.identity, references)
        table, true = (self._similarities(truth, picture, encoded) for picture in (drawn, truth.target))
        wrong = [table[i, (i + 1) % count if count > 1 else count] for i in range(count)]
        row: Row = {
            "identity": float(min(table[i, i] for i in range(count))),
            "identity_target": float(min(true[i, i] for i in range(count))),
            "identity_wrong": float(min(wrong)),
        }
        if count == 2:
            margin = metrics.swap_margin(table[:2, :2])
            row |= {f"similarity_{i}_{j}": float(table[i, j]) for i in range(2) for j in range(2)}
            row |= {"swap_margin": margin, "swapped": float(margin < self.config.swap_margin)}
        return row

    def _similarities(self, truth: Truth, picture: Image.Image, references: Features) -> np.ndarray:
        """Cosine similarity of each subject to each reference, [R, len(references)].

        Each is the higher one of two: of the subject as it is, and of its mirror image.
        """
        views = [truth.view(picture, i) for i in range(len(truth.subjects))]
        both = self.features.of(self.encoders.identity, [*views, *map(ImageOps.mirror, views)])
        table = (both.astype(np.float64) @ references.astype(np.float64).T).clip(-1, 1)
        return np.maximum(table[: len(views)], table[len(views) :])

    def inception_keys(self, truth: Truth, drawn: Image.Image) -> dict[str, list[list[str]]]:
        """Cache keys of Inception's features by part, in pairs [drawn, true]. FID and KID need them for all samples."""
        if self.encoders.inception is None:
            return {}
        pairs = {
            "whole": [(drawn, truth.target)],
            "background": [(truth.without_subjects(drawn), truth.without_subjects(truth.target))],
            "subjects": [(truth.view(drawn, i), truth.view(truth.target, i)) for i in range(len(truth.subjects))],
        }
        return {
            part: [self.features.keys(self.encoders.inception, pair) for pair in of_part]
            for part, of_part in pairs.items()
        }


def _mean_of_subjects(row: Mapping[str, float | None], count: int) -> Row:
    """The mean of each figure over a sample's subjects, named ``subjects_<figure>``."""
    figures = [name.removeprefix("subject_0_") for name in row if name.startswith("subject_0_")]
    return {f"subjects_{figure}": mean(row[f"subject_{i}_{figure}"] for i in range(count)) for figure in figures}


def mean(values: Any) -> float | None:
    """The mean of the values that are not None and finite; None if there are none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def model_figures(item: ShardSample, truth: Truth, model: Model, scorer: Scorer) -> Row:
    """Figures that only a model has: what it says of the true tokens, and the pixel figures and the identity of the
    true picture after its tokenizer has encoded and decoded it (``round_trip_*``), which are about the best that the
    model can reach."""
    size = model.tokenizer.image_size
    pixels = picture_tensor(item.target, size)[None]
    sources = samples.as_float(samples.pixels_of([*item.references, item.background], size))[None]
    device = model.net.norm.weight.device
    with torch.inference_mode(), one_thread(device):
        decoded = model.tokenizer.decode(model.tokenizer.encode(pixels), sources)[0].cpu()
        told = _told(item, truth, model)
    shown = fit(tensor_picture(decoded), truth.side)
    figures = scorer.pixel_figures(truth, as_pixels(shown))
    figures |= _mean_of_subjects(figures, len(truth.subjects))
    figures["identity"] = scorer.identity(truth, shown, item.references_rgba[0])["identity"]
    kept = ("whole", "background", "subjects", "identity")
    return {f"round_trip_{name}": v for name, v in figures.items() if name.split("_")[0] in kept} | told


def _told(item: ShardSample, truth: Truth, model: Model) -> Row:
    """What the model says of each true token, given those before it: the cross entropy in nats a token, of all scored
    tokens and of the picture's, and of each subject the share of its tokens that are the most probable ones
    (``subject_<i>_exact``)."""
    config = model.net.config
    encoded = samples.encode_sample(item, model.tokenizer, model.text, config.max_references, config.background)
    batch = samples.collate([encoded]).to(model.net.norm.weight.device)
    wanted = model.net.target_tokens(batch.sources, batch.picture)[0]
    logits = model.net(batch.sources, batch.text, batch.picture, text_mask=batch.text_mask)[0]
    losses = F.cross_entropy(logits, wanted, reduction="none")
    n = batch.picture.shape[1]
    row: Row = {"loss": losses.mean().item(), "loss_target": losses[-n:].mean().item()}
    right = (logits.argmax(-1) == wanted)[-n:].cpu().float()
    for number, mask in enumerate(truth.subjects):
        share = F.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), model.net.config.grid).flatten()
        inside = share > 0.5
        row[f"subject_{number}_exact"] = right[inside].mean().item() if inside.any() else None
    return row | _mean_of_subjects(row, len(truth.subjects))


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean of every figure over the rows that have it. The mean of ``swapped`` is called ``swap_rate``."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, str))
    means = {name: mean(row.get(name) for row in rows) for name in names if name != "references"}
    return means | {"swap_rate": means.pop("swapped", None)}
