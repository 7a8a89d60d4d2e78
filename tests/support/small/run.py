"""What the tests share: small shards that look like the real ones, small models, a small run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from commands import run_here
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from skimage import data as photos
from sklearn.datasets import load_sample_images

from data_schemas.shards import ShardSample, encode_sample
from tokenar import cli
from tokenar.config import TrainConfig, with_changes
from tokenar.encoders.config import TextConfig, TokenizerConfig
from tokenar.model.config import ModelConfig
from tokenar.model.transformer import TokenAR


def _photos() -> dict[str, Image.Image]:
    china, flower = load_sample_images().images
    found = {name: getattr(photos, name)() for name in ("astronaut", "chelsea", "coffee", "rocket", "retina")}
    found |= {
        "china": china,
        "flower": flower,
        "hubble": photos.hubble_deep_field(),
        "ihc": photos.immunohistochemistry(),
    }
    return {name: Image.fromarray(pixels).convert("RGB") for name, pixels in found.items()}


TRAIN_SUBJECTS = ("astronaut", "coffee", "rocket", "ihc")
TEST_SUBJECTS = ("chelsea", "flower")
BACKGROUNDS = ("china", "hubble", "retina")


def _cut_out(photo: Image.Image, side: int, flip: bool) -> Image.Image:
    """An ellipse out of the middle of a photo, on transparent."""
    short = min(photo.size)
    left, top = (photo.width - short) // 2, (photo.height - short) // 2
    square = photo.crop((left, top, left + short, top + short)).resize((side, side))
    if flip:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    matte = Image.new("L", (side, side))
    ImageDraw.Draw(matte).ellipse((side // 16, side // 16, side - side // 16, side - side // 16), fill=255)
    square.putalpha(matte)
    return square


def make_sample(number: int, split: str = "train", side: int = 256, references: int = 2) -> ShardSample:
    """Collage number ``number``: subjects side by side at drawn heights and sizes on part of a photo."""
    rng = np.random.default_rng([number, split == "train"])
    everything = _PHOTOS
    names = list(rng.permutation(TRAIN_SUBJECTS if split == "train" else TEST_SUBJECTS))[:references]
    scene = everything[BACKGROUNDS[rng.integers(len(BACKGROUNDS))]]
    crop = int(min(scene.size) * rng.uniform(0.5, 1.0))
    left, top = rng.integers(scene.width - crop + 1), rng.integers(scene.height - crop + 1)
    scene = scene.crop((left, top, left + crop, top + crop)).resize((side, side))
    alpha, pasted, cuts, boxes = Image.new("L", (side, side)), scene.copy(), [], []
    for i, name in enumerate(names):
        cut = _cut_out(everything[name], side, bool(rng.integers(2)))
        size = int(side * rng.uniform(0.3, 0.42))
        x = int(side * (0.05 + 0.5 * i)) + int(rng.integers(side // 20 + 1))
        y = int(rng.uniform(0.25, 0.9) * (side - size))
        small = cut.resize((size, size))
        pasted.paste(small, (x, y), small)
        alpha.paste(small.getchannel("A"), (x, y))
        cuts.append(cut)
        boxes.append([x / side, y / side, (x + size) / side, (y + size) / side])
    black = Image.composite(Image.new("RGB", (side, side)), pasted, alpha)
    foreground = pasted.copy()
    foreground.putalpha(alpha)
    flats = [Image.alpha_composite(Image.new("RGBA", c.size, "white"), c).convert("RGB") for c in cuts]
    prompt = " next to ".join(f"a {name}" for name in names) + "."
    info = {"boxes": boxes, "subjects": names, "split": split}
    return ShardSample(f"{split}-{number:04d}", flats, cuts, black, foreground, pasted, alpha, prompt, info)


_PHOTOS = _photos()


def photo(name: str) -> Image.Image:
    """One of the photographs, 128 pixels."""
    return _PHOTOS[name].resize((128, 128))


def write_shard(path: Path, samples: list[ShardSample]) -> Path:
    """One tar with the samples in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            for name, content in encode_sample(sample).items():
                entry = tarfile.TarInfo(f"{sample.sample_id}.{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def tiny_config(shards: Path, out: Path, **changes):
    """A run of a few seconds on 32-pixel pictures of 4 x 4 tokens."""
    model = ModelConfig(
        layers=1, heads=2, width=16, vocabulary=16, grid=4, text_tokens=4, text_width=8, instruct_tokens=2,
        dropout=0.1, text_dropout=0.1,
    )  # fmt: skip
    config = TrainConfig(
        shards=str(shards / "train-*.tar"), val_shards=str(shards / "test-*.tar"), out=str(out), model=model,
        tokenizer=TokenizerConfig(image_size=32, patch=8, vocabulary=16), text=TextConfig(tokens=4, width=8),
        steps=6, batch=4, lr=1e-2, log_every=1, save_every=3, variations=2,
    )  # fmt: skip
    return with_changes(config, **changes)


SMALL = ModelConfig(
    layers=2, heads=2, width=16, vocabulary=11, grid=2, max_references=2, text_tokens=3, text_width=5,
    instruct_tokens=2, dropout=0.0, text_dropout=0.0,
)  # fmt: skip


LOOK_UP = {
    "copy_head": True, "neighbours": True, "background_in_place": True, "qk_norm": True, "mimetic_start": True,
}  # fmt: skip
"""All that helps a model to look tokens up in its sources."""


def random_net(config: ModelConfig = SMALL, seed: int = 0) -> TokenAR:
    """Every weight drawn, also the head that starts at zero."""
    torch.manual_seed(seed)
    net = TokenAR(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return net


def inputs(config: ModelConfig = SMALL, batch: int = 2, references: int = 2, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    n, v = config.image_tokens, config.vocabulary
    sources = torch.randint(v, (batch, references + 1, n), generator=generator)
    text = torch.randn(batch, config.text_tokens, config.text_width, generator=generator)
    return sources, text, torch.randint(v, (batch, n), generator=generator)


def changed(**changes) -> ModelConfig:
    return ModelConfig.model_validate(SMALL.model_dump() | changes)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def write_config(config, path):
    path.write_text(config.model_dump_json())
    return str(path)


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "tokenar.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120,
        **options,
    )  # fmt: skip


def in_process(*arguments):
    """The same commands without a new interpreter."""
    return run_here(cli.main, "tokenar", *arguments)
