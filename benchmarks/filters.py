"""How many planted faults of every kind the filters catch, and how many clean samples they keep, on several pools.

python benchmarks/filters.py                                       # the packaged and the generated pool
python benchmarks/filters.py --pools packaged ~/pictures --count 40
python benchmarks/filters.py --fit                                 # thresholds of stage quality, from the other half

Half of each pool's subjects and half of the backgrounds are for fitting thresholds, the others for measuring, and a
sample has both its subjects and its background in one half. The thresholds of stage quality were fitted with --fit.
The last line is one JSON object with every share's Wilson interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.backends import build_stages
from pipeline.config import CurationConfig
from pipeline.core.rules import decide, resolve_rules
from pipeline.core.stage import Sample, Stage
from pipeline.planning.planning import PlanningConfig, planned
from pipeline.references.cutouts import list_pool, make_references
from pipeline.references.packaged import load_backgrounds
from pipeline.report.planted import planted
from pipeline.synthesis.collage import pick_background
from pipeline.synthesis.faults import KINDS

GENERATED = 200
"""Subjects of the generated pool."""
CLEAN = 2
"""Clean samples for each sample of a kind: their share is what limits all the others."""
TRIED = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05)
"""Shares of the clean samples that a fitted rule may reject."""
CLEAN_KEPT = 0.92
"""Share of the clean samples that is to be kept while fitting."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pools", nargs="+", default=["packaged", "generated"], help="as in references.pool")
    arguments.add_argument("--count", type=int, default=30, help="samples of each kind of fault, for each pool")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--fit", action="store_true", help="fit thresholds instead of measuring them")
    arguments.add_argument("--out", type=Path, default=None, help="folder for a Parquet file of each pool's scores")
    given = arguments.parse_args()
    split = "train" if given.fit else "test"
    tables, figures = {}, {}
    for pool in given.pools:
        table = tables[pool] = scored(pool, given.count, given.seed, split, given.workers)
        figures[pool] = found = planted(table)
        assert found is not None
        print(f"{pool}: clean kept {text(found['clean_kept'], found['clean'], found['clean_kept_interval'])}")
        for kind, row in found["by_fault"].items():
            print(f"  {kind:<11} {text(row['caught'], row['planted'], row['recall_interval'])}  {row['reasons']}")
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            table.to_parquet(given.out / f"{Path(pool).name}-{split}.parquet")
    line = {"benchmark": "filters", "split": split, "count": given.count, "seed": given.seed, "pools": figures}
    if given.fit:
        line["thresholds"] = fit(pd.concat(tables.values(), ignore_index=True))
    print(json.dumps(line))


def text(part: int, whole: int, interval: Sequence[float] | None) -> str:
    low, high = interval or (0.0, 1.0)
    return f"{part:>3} of {whole:<3} = {part / max(1, whole):.3f} ({low:.3f} to {high:.3f})"


# Scoring


def scored(pool: str, count: int, seed: int, split: str, workers: int) -> pd.DataFrame:
    """A row with scores, decision and reasons for ``count`` samples of each kind of fault and CLEAN times as many
    clean ones, all with the pool's subjects and the backgrounds of one split.
    """
    settings: dict[str, Any] = {"pool": pool} | ({"count": GENERATED} if pool == "generated" else {})
    config = CurationConfig.parse({"references": settings}, "benchmark")
    references, members, _ = make_references(list_pool(config.references), config.references)
    usable = [row for row in references if row["status"] == "ok"]
    rows = iter(of_split(usable, count, seed, split))
    parts = []
    for kind in ("none", *KINDS):
        own = list(islice(rows, count * CLEAN if kind == "none" else count))
        faults = {"fault_share": 0.0} if kind == "none" else {"fault_share": 1.0, "faults": [kind]}
        stages = build_stages(CurationConfig.parse({"synthesis": {"backend": "collage", **faults}}, "benchmark"))
        halves = [own[k::workers] for k in range(workers)]
        with ThreadPoolExecutor(workers) as threads:
            parts += threads.map(partial(run_stages, stages, members, usable), halves)
    frames = {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}
    decided = pd.DataFrame(decide(frames, resolve_rules(stages, {})))
    columns = [frames[stage.name][[column.name for column in stage.columns]] for stage in stages]
    return pd.concat([decided, *columns], axis=1)


def of_split(references: Sequence[dict], count: int, seed: int, split: str) -> list[dict]:
    """Enough rows of a plan whose subjects and background are of this split. Every second background is for fitting."""
    names = [name for name, _ in load_backgrounds()]
    half = set(names[::2] if split == "train" else names[1::2])
    needed = count * (CLEAN + len(KINDS))
    plan = list(planned(references, PlanningConfig(test_share=0.5), 6 * needed, seed))
    own = [
        row for row in plan
        if row["split"] == split and pick_background(np.random.default_rng([row["seed"], 0]))[0] in half
    ]  # fmt: skip
    return own[:needed]


def run_stages(
    stages: Sequence[Stage], members: dict[str, dict[str, bytes]], usable: Sequence[dict], plan: Sequence[dict]
) -> dict[str, pd.DataFrame]:
    """The rows of all stages by name, for these rows of a plan."""
    files: dict[str, dict[str, dict[str, bytes]]] = {row["sample_id"]: {} for row in plan}
    samples = [
        Sample(
            row["sample_id"], {"plan": row}, files[row["sample_id"]].__getitem__,
            lambda reference_id: members[reference_id]["cutout.png"], pool=lambda: usable,
        )
        for row in plan
    ]  # fmt: skip
    frames = {}
    for stage in stages:
        made, saved, _ = stage.run(samples, {})
        frames[stage.name] = pd.DataFrame(made)
        for sample_id, pictures in saved.items():
            files[sample_id][stage.name] = pictures
        for sample in samples:
            sample.saved = {}
    return frames


# Fitting


def fit(table: pd.DataFrame) -> dict[str, float]:
    """Thresholds of stage quality with the highest recall of the worst kind that keep enough clean samples.

    Each is a quantile of the clean samples' scores, tried one rule at a time. The other stages' thresholds stay as they
    are. With few clean samples it is coarse: look at the tables of --out too.
    """
    stages = build_stages(CurationConfig())
    rules = [rule for stage in stages if stage.name == "quality" for rule in stage.rules]
    clean = table.planted_fault == "none"
    others = table.reasons.map(lambda found: bool(set(found) - {rule.reason for rule in rules})).to_numpy()
    candidates = {}
    for rule in rules:
        sign = 1 if rule.bound == "max" else -1
        badness = sign * table[rule.column].to_numpy(float)
        if np.ptp(badness) == 0:
            continue  # GrabCut cuts nothing out of what lies outside the boxes
        candidates[rule.reason] = [
            (sign * limit, badness > limit) for limit in np.quantile(badness[clean], [1 - share for share in TRIED])
        ]
    chosen = dict.fromkeys(candidates, 0)

    def value(trial: dict[str, int]) -> tuple[float, float]:
        rejected = others | np.logical_or.reduce([candidates[reason][k][1] for reason, k in trial.items()])
        recalls = [rejected[(table.planted_fault == kind).to_numpy()].mean() for kind in KINDS]
        kept = 1 - float(rejected[clean].mean())
        short = min(0.0, kept - CLEAN_KEPT)
        return 10 * short + min(recalls) + 0.1 * float(np.mean(recalls)), kept

    for _ in range(3):
        for reason in chosen:
            chosen = max(({**chosen, reason: k} for k in range(len(TRIED))), key=value)
    print("fitted", value(chosen), {reason: TRIED[k] for reason, k in chosen.items()})
    return {reason: round(float(candidates[reason][k][0]), 4) for reason, k in chosen.items()}


if __name__ == "__main__":
    main()
