"""Does the curation make the model better? The same training on a dataset before and after its filters.

The training shards must hold every sample (``shards.unfiltered``); the manifest beside them says which were rejected.
Four trainings differ only in their samples: all of them ("unfiltered"), those that the filters kept ("filtered"), as
many chosen at random ("thinned"), and those without a planted fault, which no filter can know ("without faults").
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from data_schemas.errors import UserError
from data_schemas.io.files import write_atomically
from tokenar.config import SampleConfig, TrainConfig, with_changes
from tokenar.sweeps.runs import EncodedOnce, compare, measured, needs_held_out, write_table

COLUMNS = ["sample_id", "split", "shard", "decision", "planted_fault"]


def sweep(
    config: TrainConfig,
    seeds: int = 3,
    sampling: SampleConfig | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train and evaluate on every choice of samples with ``seeds`` seeds. Returns the table's rows.

    ``config.out`` gets a folder for each run, ``filters.md`` and ``filters.json``. Every run is compared with
    "filtered". UserError without validation shards, or if the shards are not those of an unfiltered dataset.
    """
    needs_held_out(config)
    out, table, load = Path(config.out), list[dict[str, Any]](), EncodedOnce()
    manifest = _manifest(config.shards)
    for name in ("unfiltered", "thinned", "filtered", "without faults"):
        runs = []
        for seed in range(config.seed, config.seed + seeds):
            chosen = choices(manifest, seed)[name]
            folder = out / f"{name.replace(' ', '-')}-seed{seed}"
            listed = Path(f"{folder}.txt")  # beside the run's folder, which is emptied when the run begins
            listed.parent.mkdir(parents=True, exist_ok=True)
            content = "".join(f"{sample_id}\n" for sample_id in chosen)
            write_atomically(listed, partial(_write, content))
            runs.append(with_changes(config, seed=seed, out=str(folder), only=str(listed)))
        row = measured(name, runs, sampling or SampleConfig(), limit, say, load)
        faulty = manifest[manifest.sample_id.isin(chosen)].planted_fault != "none"
        table.append(row | {"samples_trained": len(chosen), "faulty_share": float(faulty.mean())})
        compare(table, "filtered")
        write_table(out / "filters.md", table, extra=("samples_trained", "faulty_share"))
    return table


def choices(manifest: pd.DataFrame, seed: int) -> dict[str, list[str]]:
    """Sample ids of every choice, in the manifest's order. "thinned" depends on the seed."""
    every = manifest.sample_id.tolist()
    kept = manifest[manifest.decision == "kept"].sample_id.tolist()
    some = set(random.Random(f"thinned/{seed}").sample(every, len(kept)))
    clean = manifest[manifest.planted_fault == "none"].sample_id.tolist()
    return {
        "unfiltered": every, "filtered": kept, "thinned": [i for i in every if i in some], "without faults": clean,
    }  # fmt: skip


def _write(content: str, path: Path) -> None:
    path.write_text(content)


def _manifest(shards: str) -> pd.DataFrame:
    """The rows of the training samples in the manifest beside the shards that the glob names."""
    path = f"{shards.rpartition('/')[0] or '.'}/manifest.parquet"
    try:
        table = pd.read_parquet(path, columns=COLUMNS)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no manifest there; a sweep of filters needs the shards of a curation") from error
    table = table[(table.split == "train") & table.shard.notna()]
    if not (table.decision == "rejected").any() or (table.decision == "kept").sum() < 2:
        raise UserError(
            f"{path}: the shards hold {len(table)} training samples, none of them rejected; curate with "
            "--set shards.unfiltered=true"
        )
    return table
