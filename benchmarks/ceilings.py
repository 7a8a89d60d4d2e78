"""The identity that image tokens can hold: of true pictures at several sizes, and of what tokenizers make of them.

python benchmarks/ceilings.py
python benchmarks/ceilings.py --train 'runs/mine/dataset/train-*.tar' --test 'runs/mine/dataset/test-*.tar' --limit 32

No model can be better than the true picture after its tokenizer has encoded and decoded it. "way" is how far that is on
the way from another subject's reference (0) to the true picture (1). Patch codebooks are fitted to the training
samples; the VQ tokenizer is the packaged one. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image

from data_schemas.shards import ShardSample
from tokenar.data.samples import as_float, pixels_of, read_resized, read_samples
from tokenar.encoders.config import TokenizerConfig
from tokenar.encoders.fitted import FittedTokenizer, fit_tokenizer, load_fitted
from tokenar.encoders.patches import picture_tensor, tensor_picture
from tokenar.evaluate.cache import Cache, CachedFeatures
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.encoders import Encoders
from tokenar.evaluate.pictures import Truth, as_pixels, fit
from tokenar.evaluate.rows import Scorer, summarise
from tokenar.model.folder import START

SIDE = 96
FITTED = 200
"""Samples that codebooks are fitted to."""
Draw = Callable[[ShardSample], Image.Image]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--train", default="runs/quickstart/dataset/train-*.tar")
    arguments.add_argument("--test", default="runs/quickstart/dataset/test-*.tar")
    arguments.add_argument("--limit", type=int, default=64, help="test samples")
    given = arguments.parse_args()
    items = list(read_samples(given.test, given.limit))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        config = EvalConfig()
        scorer = Scorer(config, Encoders(config, torch.device("cpu")), CachedFeatures(Cache(Path(folder))))
        for name, side, draw in methods(given.train):
            rows[name] = row = measured(scorer, items, side, draw)
            print(f"{name:<46}" + "".join(f"  {key} {value:.3f}" for key, value in row.items()), flush=True)
    print(json.dumps({"samples": len(items), "rows": rows}))


def methods(train: str) -> list[tuple[str, int, Draw]]:
    """(name, side in pixels, what draws a sample's picture) of everything that is measured."""
    known = [(f"true pictures, {side} pixels", side, partial(shown, side)) for side in (48, 64, SIDE, 128)]
    pictures = as_float(torch.cat([s.pixels for s in read_resized(train, SIDE, 8)[:FITTED]]))
    for patch, vocabulary in ((8, 512), (4, 512), (4, 2048)):
        config = TokenizerConfig(image_size=SIDE, patch=patch, vocabulary=vocabulary)
        codebook = fit_tokenizer(config, pictures)
        known.append(
            (f"patch codebook, {patch} pixels, {vocabulary} codes", SIDE, partial(round_trip, codebook, False))
        )
    packaged = load_fitted(START / "tokenizer.safetensors")
    name = f"VQ tokenizer, {packaged.config.patch} pixels, {packaged.vocabulary} codes"
    known.append((name, SIDE, partial(round_trip, packaged, False)))
    known.append((f"{name}, sources at hand", SIDE, partial(round_trip, packaged, True)))
    return known


def shown(side: int, item: ShardSample) -> Image.Image:
    return fit(item.target, side)


def round_trip(tokenizer: FittedTokenizer, with_sources: bool, item: ShardSample) -> Image.Image:
    codes = tokenizer.encode(picture_tensor(item.target, SIDE)[None])
    sources = as_float(pixels_of([*item.references, item.background], SIDE))[None] if with_sources else None
    return tensor_picture(tokenizer.decode(codes, sources)[0])


def measured(scorer: Scorer, items: list[ShardSample], side: int, draw: Draw) -> dict[str, float]:
    rows = []
    for item, following in pairwise([*items, items[0]]):
        truth, picture = Truth(item, side, scorer.config.padding), draw(item)
        pixels = scorer.pixel_figures(truth, as_pixels(picture))
        subjects = (pixels["subject_0_psnr"] + pixels["subject_1_psnr"]) / 2
        rows.append(scorer.identity(truth, picture, following.references_rgba[0]) | {
            "psnr_subjects": subjects, "psnr_background": pixels["background_psnr"],
        })  # fmt: skip
    means = summarise(rows)
    floor = means["identity_wrong"]
    means["way"] = (means["identity"] - floor) / (means["identity_target"] - floor)
    names = ("identity", "identity_wrong", "identity_target", "way", "psnr_subjects", "psnr_background")
    return {name: round(means[name], 3) for name in names}


if __name__ == "__main__":
    main()
