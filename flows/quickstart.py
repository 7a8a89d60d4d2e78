"""``make quickstart``: curate, train, sample, measure and report, on packaged photographs and a CPU."""

from __future__ import annotations

import sys

from prefect import flow

from data_schemas.errors import UserError
from flows.curate import curate_instructar
from flows.train import evaluate_tokenar, train_tokenar
from pipeline.config import CurationConfig
from pipeline.results import report_run


@flow(name="quickstart", log_prints=True)
def quickstart(config: CurationConfig = CurationConfig(), steps: int | None = None) -> dict:
    """The whole road; returns where everything is."""
    places = curate_instructar(config)
    training = f"{config.run_url}/training"
    shards, test_shards = places["shards"], places["test_shards"]
    train_tokenar(shards, test_shards, training, steps, resume=True)
    evaluate_tokenar(f"{training}/model", test_shards, training)
    report_run(config)
    return places | {
        "checkpoint": f"{training}/model",
        "samples": f"{training}/samples",
        "evaluation": f"{training}/evaluation/metrics.json",
    }


def main() -> None:
    try:
        places = quickstart(CurationConfig.load())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print("\nDone. Look at the report first:")
    for what, place in places.items():
        print(f"  {what:<12} {place}")


if __name__ == "__main__":
    main()
