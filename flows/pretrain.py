"""``make pretrain``: makes the small model that is installed with the package and that the quickstart starts from.

Generates subjects, composes pictures of them, trains ``cpu_base`` and measures it on pictures of subjects that it has
not seen. A run that was stopped or killed goes on with the same command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from data_schemas import commands
from data_schemas.errors import UserError
from data_schemas.io.files import write_atomically
from flows.curate import curate_instructar
from flows.train import train_tokenar
from pipeline.config import CurationConfig
from tokenar.config import PRESETS, TrainConfig, with_changes
from tokenar.model.folder import FILES, START

PROFILE = "pretrain"
LOG = "metrics.jsonl"
TESTED, FEWEST = 4, 8
"""Samples that the model is at least measured on, and that are at least curated: half of them may be for testing."""
CARD = """---
license: mit
library_name: tokenar
pipeline_tag: image-to-image
---

# The start of the quickstart

A TokenAR of {parameters:.1f} million parameters that draws two reference subjects into a background, 96 pixels a side.
`make pretrain` made it, and nothing else, from {collages} collages of {subjects} generated subjects on the packaged
photographs (pipeline/references/packaged.yaml lists them with their licences). The subjects' textures are patches of
these photographs; no photograph of a subject was in the training.

It was trained in {steps} steps of {batch} samples (the preset `cpu_base`), seed {seed}, on one {device}.
Measured with torch {torch} on {samples} collages of subjects that it has not seen, means:

| | |
| --- | ---: |
| identity of the drawn subjects | {identity:.3f} |
| of the true pictures, of wrong references | {identity_target:.3f}, {identity_wrong:.3f} |
| of the true pictures after encoding and decoding | {round_trip_identity:.3f} |
| swap rate | {swap_rate:.3f} |
| PSNR of the background | {background_psnr:.1f} dB |
| loss of the pictures, of their subjects | {val_loss_target:.3f}, {val_loss_subjects:.3f} nats a token |

| file | SHA-256 |
| --- | --- |
{digests}

`training.jsonl` is the log of the run, `recipe.json` the settings of curation and training.
"""


def pretrain(root: str, samples: int | None = None, steps: int | None = None, out: Path = START) -> None:
    """Curate, train, measure, and copy model, card, log and settings to ``out``.

    Of fewer ``samples`` than the profile's there are fewer subjects, too: half as many. At least four samples show
    subjects for testing, for the model to be measured on; UserError if that were more than half of them.
    """
    if samples is not None and samples < FEWEST:
        raise UserError(f"--samples {samples}: too few to test on; give at least {FEWEST}")
    given: dict[str, object] = {"root": root}
    if samples is not None:
        profile = CurationConfig.load(PROFILE)
        (pool,) = profile.references.pools()
        fewer = pool.model_copy(update={"count": max(8, samples // 2)})
        given |= {"samples": samples, "references.pool": [fewer.model_dump(exclude_none=True)]}
        given |= {"planning.test_share": max(profile.planning.test_share, TESTED / samples)}
    curation = CurationConfig.load(PROFILE, given=given)
    results = curate_instructar.fn(curation, PROFILE)
    training = Path(curation.run_url) / "training"
    summary = train_tokenar.fn(results["shards"], results["test_shards"], str(training), "cpu_base", steps=steps)
    if "model" not in summary:  # stopped by a signal; a checkpoint is saved
        raise KeyboardInterrupt
    out.mkdir(parents=True, exist_ok=True)
    for source, name in [
        *((Path(summary["model"]) / name, name) for name in FILES),
        (training / LOG, "training.jsonl"),
    ]:
        write_atomically(out / name, partial(shutil.copyfile, source))
    settings = with_changes(PRESETS["cpu_base"](), **({} if steps is None else {"steps": steps}))
    recipe = {"curation": curation.model_dump(mode="json", exclude={"root"}), "training": settings.model_dump()}
    write_atomically(out / "recipe.json", lambda path: path.write_text(json.dumps(recipe, indent=2) + "\n"))
    write_atomically(out / "README.md", lambda path: path.write_text(card(out, curation, settings, summary)))
    print((out / "README.md").read_text())


def card(out: Path, curation: CurationConfig, settings: TrainConfig, summary: dict[str, Any]) -> str:
    """The card of the model in ``out``."""
    (method,) = summary["evaluation"]["methods"].values()
    subjects = sum(pool.count or 0 for pool in curation.references.pools())
    digests = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}
    return CARD.format(
        subjects=subjects, collages=curation.samples, steps=settings.steps, batch=settings.batch, seed=settings.seed,
        torch=torch.__version__, device=training_device(out), parameters=parameters(out) / 1e6,
        digests="\n".join(f"| {name} | `{digest}` |" for name, digest in digests.items()),
        **{name: summary[name] for name in ("val_loss_target", "val_loss_subjects")}, **method["figures"],
    )  # fmt: skip


def training_device(out: Path) -> str:
    """Where the training in ``out`` began, from its log."""
    with open(out / "training.jsonl") as log:
        return str(json.loads(log.readline())["device"])


def parameters(out: Path) -> int:
    """The number of parameters of the network in ``out``."""
    with safe_open(out / "model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def main() -> None:
    commands.run(_pretrain_command)


def _pretrain_command() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--root", default="runs", help="folder that holds the runs")
    arguments.add_argument("--samples", type=int, help="collages (the profile's own number by default)")
    arguments.add_argument("--steps", type=int, help="training steps (the preset's own by default)")
    arguments.add_argument("--out", type=Path, default=START, help="folder of the model (the package's by default)")
    options = arguments.parse_args()
    pretrain(options.root, options.samples, options.steps, options.out)


if __name__ == "__main__":
    main()
