"""What is right with every case, so that one thing is wrong with it: a pool, shards, a trained model, pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from fuzz.runner import run


def picture(seed: int, side: int = 64) -> Image.Image:
    """A subject with its own alpha."""
    made = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    colour = (40 + 37 * seed % 200, 40 + 91 * seed % 200, 40 + 53 * seed % 200, 255)
    ImageDraw.Draw(made).ellipse((8, 8, side - 8, side - 8), fill=colour)
    return made


def make_pool(folder: Path, categories: tuple[str, ...] = ("cats", "dogs")) -> Path:
    """Two pictures of each category."""
    for number, category in enumerate(categories):
        (folder / category).mkdir(parents=True, exist_ok=True)
        for k in range(2):
            picture(2 * number + k).save(folder / category / f"{category}-{k}.png")
    return folder


def make_folder_request(folder: Path) -> Path:
    """A folder that tokenar-sample can draw from."""
    (folder / "ref").mkdir(parents=True)
    for k in range(2):
        picture(k).save(folder / "ref" / f"{k}.png")
    Image.new("RGB", (64, 64), "white").save(folder / "background.png")
    (folder / "description.txt").write_text("a cat next to a dog")
    return folder


def make_good(root: Path, commands: dict[str, Callable[[], None]]) -> dict[str, str]:
    """The places by the names that cases use."""
    from small.run import make_sample, tiny_config, write_config, write_shard

    for split, count in (("train", 6), ("test", 2)):
        write_shard(root / "shards" / f"{split}-00000.tar", [make_sample(k, split, side=64) for k in range(count)])
    config = tiny_config(root / "shards", root / "run", steps=2, val_shards=None)
    path = write_config(config, root / "config.json")
    trained = run(commands["train"], ["--config", path], root / "training", seconds=120)
    if trained.code != 0:
        raise RuntimeError(f"the good training failed: {trained.out}")
    return {
        "pool": str(make_pool(root / "pool")),
        "shards": str(root / "shards" / "test-*.tar"),
        "train": str(root / "shards" / "train-*.tar"),
        "config": path,
        "model": str(root / "run" / "model"),
        "request": str(make_folder_request(root / "request")),
        "good": str(root),
    }
