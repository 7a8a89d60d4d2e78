"""The flows of the model: training on a curation's shards, and measuring on held-out subjects."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_table_artifact

from tokenar.config import SampleConfig, cpu_small
from tokenar.evaluate import evaluate
from tokenar.generate import sample
from tokenar.train import train


@flow(name="train-tokenar", log_prints=True)
def train_tokenar(
    shards: str = "runs/quickstart/dataset/train-*.tar",
    val_shards: str = "runs/quickstart/dataset/test-*.tar",
    out: str = "runs/quickstart/training",
    steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict:
    """Train TokenAR on shards; returns the last losses and where the model is.

    ``resume`` continues from the newest checkpoint in ``out``; ``overwrite`` removes an earlier run first.
    """
    given = {} if steps is None else {"steps": steps}
    config = cpu_small(shards, val_shards=val_shards, out=out, **given)
    summary = train(config, resume=resume, overwrite=overwrite)
    create_table_artifact([summary], key="training", description="Losses in nats a token, and the model's place")
    return summary


@flow(name="evaluate-tokenar", log_prints=True)
def evaluate_tokenar(
    model: str = "runs/quickstart/training/model",
    shards: str = "runs/quickstart/dataset/test-*.tar",
    out: str = "runs/quickstart/training",
    limit: int | None = None,
    guidance: float = 1.0,
    seed: int = 0,
) -> dict:
    """Sample a picture for every test sample and measure it; returns the means."""
    pictures = f"{out}/samples"
    sample(model, shards, pictures, SampleConfig(seed=seed, guidance=guidance), limit=limit)
    numbers = evaluate(model, shards, f"{out}/evaluation", predictions=pictures)
    create_table_artifact([numbers], key="evaluation", description="Means over the test samples")
    return numbers
