"""What is right with every case, so that one thing is wrong with it: a pool, shards, a trained model, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
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


CARD = "---\nlicense: mit\n---\n# A dataset\n"


def make_dataset(folder: Path) -> Path:
    """A dataset as a curation publishes it: two samples in train, one in test, and one that is in no shard."""
    import hashlib

    from small.datasets import row, write_dataset
    from small.run import make_sample, write_shard

    rows = [row(0), row(1), row(2, "test"), row(3, shard=None)]
    held: dict[str, list] = {}
    for own in rows[:3]:
        sample = make_sample(own["index"], own["split"], side=64)
        names = [{"name": name} for name in sample.info["subjects"]]
        info = sample.info | {"subjects": names, "relation": "beside"}
        held.setdefault(own["shard"], []).append(replace(sample, sample_id=own["sample_id"], info=info))
    made = {name: write_shard(folder.parent / "made" / name, samples) for name, samples in held.items()}
    write_dataset(folder, rows, shards={n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in made.items()})
    for name, path in made.items():
        path.rename(folder / name)
    (folder / "README.md").write_text(CARD)
    return folder


def make_published(folder: Path) -> Path:
    """A checkpoint that tells its own settings, net.pt, and its VQ tokenizer, vq.pt."""
    import torch
    from small.published import circle_vq
    from small.run import changed, random_net

    from tokenar.model.transformer import TokenAR

    folder.mkdir(parents=True)
    config = changed(grid=4, vocabulary=64, max_references=3, text_width=16, distill="dinov2")
    text = {"tokens": config.text_tokens, "width": config.text_width}
    settings = {"model": json.loads(config.model_dump_json()), "text": text}
    with torch.device("meta"):  # what torch imports for it is imported before the forks
        TokenAR(config)
    torch.save({"model": random_net(config).state_dict(), "tokenar": settings}, folder / "net.pt")
    torch.save({"model": circle_vq(64).state_dict()}, folder / "vq.pt")
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
        "dataset": str(make_dataset(root / "dataset")),
        "published": str(make_published(root / "published")),
        "good": str(root),
    }
