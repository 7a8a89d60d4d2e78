"""``make quickstart``: curate, train, sample, measure and report, on packaged photographs and a CPU."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL
from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS as STARTUP_TIMEOUT

from data_schemas import commands
from data_schemas.errors import UserError
from data_schemas.io.storage import shown
from flows.curate import curate_instructar
from flows.engine import callable_of, reports_mistakes
from flows.train import train_tokenar
from pipeline.config import CurationConfig
from pipeline.report.results import report_run
from tokenar.config import PRESETS
from tokenar.train.loop import OtherRun

PORT_TAKEN = 3
"""Exit code of a temporary server that found its port taken; Prefect then tries another port."""


@flow(name="quickstart", log_prints=True)
@reports_mistakes
def quickstart(config: CurationConfig = CurationConfig(), steps: int | None = None, preset: str = "cpu_quick") -> dict:
    """Curate, train, sample, evaluate and report; returns the paths of the results by name.

    The preset "cpu_quick" trains the small model that is installed with the package further, "cpu_small" one from
    nothing.

    Results of an earlier run with the same settings are kept.
    """
    config = config.on_profile("embedded")
    if "://" in config.root:
        raise UserError(f"root {shown(config.root)}: the quickstart trains on this machine's disk; give a folder")
    results = callable_of(curate_instructar)(config)
    training = Path(config.run_url) / "training"

    if "shards" not in results:
        raise UserError(f"{config.run_url}: no sample for training was kept; plan more with --samples")

    def trained() -> dict[str, Any]:
        return callable_of(train_tokenar)(
            results["shards"], results.get("test_shards"), str(training), preset, steps=steps, seed=config.seed
        )

    try:
        summary = trained()
    except OtherRun as error:  # a model that was trained on another dataset is moved aside, not overwritten
        aside = next(path for n in count(1) if not (path := training.with_name(f"training-{n}")).exists())
        training.rename(aside)
        print(f"{error.args[0].partition(';')[0]}; it is kept as {aside}")
        summary = trained()
    report_run(config)
    if "model" in summary:
        results["checkpoint"] = summary["model"]
    if "evaluation" in summary:
        (model,) = summary["evaluation"]["methods"]
        results |= {
            "samples": f"{training}/evaluation/{model}/samples",
            "evaluation": f"{training}/evaluation/table.md",
        }
    return results


def server_comes() -> bool:
    """Whether Prefect has a server.

    A configured server is asked; a temporary one is waited for while its process is alive.
    """
    if PREFECT_API_URL.value() is None:
        limit = STARTUP_TIMEOUT.value()
        print(f"Waiting for Prefect's temporary server: seconds, or minutes on a busy machine (at most {limit} s).")
    asking = threading.Thread(target=_ask, args=(answers := list[Exception | None](),), daemon=True)
    asking.start()
    server = SubprocessASGIServer()  # Prefect's singleton: the server that is being started, if there is one
    while asking.is_alive():
        asking.join(0.5)
        if server.server_process and server.server_process.poll() not in (None, PORT_TAKEN):
            answers.append(RuntimeError(f"it ended with status {server.server_process.returncode}"))
            break
    if problem := answers[0]:
        server.stop()
        why = str(problem).strip().splitlines()[0]
        print(f"Prefect has no server ({why}); going on without Prefect, which makes the same files.")
    return problem is None


def _ask(answers: list[Exception | None]) -> None:
    try:
        with get_client(sync_client=True) as client:
            answers.append(client.api_healthcheck())
    except Exception as error:  # for any reason; the work can be done without a server
        answers.append(error)


def main() -> None:
    commands.run(_quickstart_command)


def _quickstart_command() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--root", default="runs", help="folder that holds the runs")
    arguments.add_argument("--samples", type=int, default=96, help="samples to plan")
    arguments.add_argument("--steps", type=int, help="training steps (the preset's own by default)")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the samples and of the training")
    arguments.add_argument("--from-scratch", action="store_true", help="train a model from nothing, without the start")
    arguments.add_argument("--version", action="version", version=commands.version_line())
    options = arguments.parse_args()
    config = CurationConfig.load(given={"root": options.root, "samples": options.samples, "seed": options.seed})
    preset = "cpu_small" if options.from_scratch else "cpu_quick"
    if options.steps is not None:
        PRESETS[preset](steps=options.steps)  # raises UserError for a wrong number before the curation begins
    run: Callable[..., dict] = quickstart if server_comes() else quickstart.fn
    results = run(config, options.steps, preset)
    if "checkpoint" not in results:  # the trainer was interrupted and has saved a checkpoint
        raise KeyboardInterrupt
    print("\nDone. Look at the report first:")
    for name, path in results.items():
        print(f"  {name:<12} {path}")


if __name__ == "__main__":
    main()
