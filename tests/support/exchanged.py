"""Examples in folders, as people have them who know the published program."""

from __future__ import annotations

from pathlib import Path

from small.run import make_sample

from data_schemas.shards import ShardSample


def write_example(
    folder: Path, number: int, split: str = "train", references: int = 1, background: bool = True
) -> ShardSample:
    """Write sample ``number`` as a folder, its references with transparency; returns the sample."""
    sample = make_sample(number, split, side=64, references=references)
    (folder / "ref").mkdir(parents=True)
    for k, picture in enumerate(sample.references_rgba, 1):
        picture.save(folder / f"ref/ref{k}.png")
    sample.target.save(folder / "real.png")
    if background:
        sample.background.save(folder / "background.png")
    (folder / "description.txt").write_text(f"{sample.prompt}\n")
    return sample
