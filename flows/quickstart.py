"""``make quickstart``: curate, train, sample, measure and report, on packaged photographs and a CPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from prefect import flow

from data_schemas import commands
from flows.curate import curate_instructar
from flows.train import train_tokenar
from pipeline.config import CurationConfig
from pipeline.parts import content_digest
from pipeline.results import report_run
from tokenar.config import cpu_small


@flow(name="quickstart", log_prints=True)
def quickstart(config: CurationConfig = CurationConfig(), steps: int | None = None) -> dict:
    """The whole road; returns where everything is. What an earlier run made from the same settings is kept."""
    places = curate_instructar(config)
    training = f"{config.run_url}/training"
    # A model trained on another dataset is no start for this one: the manifest's digest tells.
    mark = Path(training) / "dataset.txt"
    digest = content_digest(Path(places["manifest"]).read_bytes())
    checkpoints = list(Path(training).glob("checkpoints/step-*"))
    same = bool(checkpoints) and mark.is_file() and mark.read_text() == digest
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest)
    train_tokenar(places["shards"], places["test_shards"], training, steps=steps, resume=same, overwrite=not same)
    report_run(config)
    return places | {
        "checkpoint": f"{training}/model",
        "samples": f"{training}/evaluation/{config.name}/samples",
        "evaluation": f"{training}/evaluation/table.md",
    }


def main() -> None:
    commands.run(_quickstart_command)


def _quickstart_command() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--root", default="runs", help="folder that holds the runs")
    arguments.add_argument("--samples", type=int, default=96, help="samples to plan")
    arguments.add_argument("--steps", type=int, help="training steps (the preset's own by default)")
    arguments.add_argument("--version", action="version", version=commands.version_line())
    given = arguments.parse_args()
    config = CurationConfig.load(given={"root": given.root, "samples": given.samples})
    if given.steps is not None:
        cpu_small(steps=given.steps)  # a number that cannot be trained is told before the curation
    places = quickstart(config, given.steps)
    print("\nDone. Look at the report first:")
    for what, place in places.items():
        print(f"  {what:<12} {place}")


if __name__ == "__main__":
    main()
