"""Small shards that look like the real ones: photographed subjects pasted on a photographed background."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data as photos
from sklearn.datasets import load_sample_images

from data_schemas.shards import ShardSample, encode_sample


def _photos() -> dict[str, Image.Image]:
    china, flower = load_sample_images().images
    found = {name: getattr(photos, name)() for name in ("astronaut", "chelsea", "coffee", "rocket", "retina")}
    found |= {"china": china, "flower": flower, "hubble": photos.hubble_deep_field(), "ihc": photos.immunohistochemistry()}
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


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """A folder with train-00000.tar, train-00001.tar (5 + 5 samples) and test-00000.tar (3), 64-pixel pictures."""
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "train-00000.tar", [make_sample(i, side=64) for i in range(5)])
    write_shard(folder / "train-00001.tar", [make_sample(i, side=64) for i in range(5, 10)])
    write_shard(folder / "test-00000.tar", [make_sample(i, "test", side=64) for i in range(3)])
    return folder
