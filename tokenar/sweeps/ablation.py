"""The paper's ablations (section 4.2): the four rows of Table 4, and the number of instruct tokens (Fig. 8).

Every run differs from the given settings only in what its name says, and is repeated with the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_schemas.errors import UserError
from data_schemas.io.files import write_atomically
from tokenar.config import SampleConfig, TrainConfig, with_changes
from tokenar.sweeps.runs import EncodedOnce, compare, measured, needs_held_out, write_table

ROWS: dict[str, dict[str, object]] = {
    "baseline": {
        "model__index_embedding": False, "model__instruct_tokens": 0, "model__identity_disentanglement": False,
    },
    "without instruct tokens": {"model__instruct_tokens": 0},
    "without ITD": {"model__identity_disentanglement": False},
    "full": {},
}  # fmt: skip
"""The rows of the paper's Table 4 and the settings they change. "baseline" has none of the paper's three parts."""

PAPER_COUNTS = (30, 60, 120, 240, 1024)
"""Numbers of instruct tokens around the paper's choice of 120 (Fig. 8). They are scaled by the given settings' number
over 120."""


def runs_of(config: TrainConfig) -> dict[str, dict[str, object]]:
    """Name of each run -> the settings it changes. The number of instruct tokens of "full" is not trained twice."""
    own = config.model.instruct_tokens
    if not own:
        raise UserError("a sweep needs model.instruct_tokens above 0; they are one of the parts that it takes away")
    counts = sorted({max(1, round(count * own / 120)) for count in PAPER_COUNTS} - {own})
    return ROWS | {f"{count} instruct tokens": {"model__instruct_tokens": count} for count in counts}


def sweep(
    config: TrainConfig,
    seeds: int = 3,
    sampling: SampleConfig | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train and evaluate every run with ``seeds`` seeds. Returns the table's rows.

    ``config.out`` gets a folder for each run, ``ablation.json`` with every figure of every seed, ``ablation.md`` and
    ``ablation.png``. Every run is compared with "full". ``say`` is called with a line after each run. UserError without
    validation shards, because identity is measured on subjects that were not trained on.
    """
    needs_held_out(config)
    out, table, load = Path(config.out), list[dict[str, Any]](), EncodedOnce()
    for name, changes in runs_of(config).items():
        folder = f"{out}/{name.replace(' ', '-')}-seed"
        runs = [
            with_changes(config, **changes, seed=seed, out=f"{folder}{seed}")
            for seed in range(config.seed, config.seed + seeds)
        ]
        row = measured(name, runs, sampling or SampleConfig(), limit, say, load)
        table.append(row | {"instruct_tokens": runs[0].model.instruct_tokens})
        compare(table, "full")
        write_table(out / "ablation.md", table)
        write_atomically(out / "ablation.png", lambda path: _plot(path, table))
    return table


def _plot(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Plot the identity of every run: Table 4's rows on the left, the numbers of instruct tokens on the right.

    Points are seeds, lines their means; a dotted line is the mean similarity to a wrong reference.
    """
    from matplotlib.figure import Figure  # unlike pyplot it has no global state and opens no window

    rows = [row for row in table if row["run"] in ROWS]
    counts = [row for row in table if row["run"] not in ROWS or row["run"] == "full"]
    counts.sort(key=lambda row: row["instruct_tokens"])
    figure = Figure(figsize=(10, 4), layout="constrained")
    names = [row["run"].replace(" ", "\n", 1) for row in rows], [str(row["instruct_tokens"]) for row in counts]
    for axes, shown, ticks in zip(figure.subplots(1, 2, sharey=True), (rows, counts), names, strict=True):
        for x, row in enumerate(shown):
            seeds = [seed["identity"] for seed in row["seeds"]]
            axes.plot([x] * len(seeds), seeds, "o", color="0.6", markersize=5, label="one seed")
            across = [x - 0.25, x + 0.25]
            axes.plot(across, [row["identity"]] * 2, color="C0", linewidth=2.5, label="mean of the seeds")
            axes.plot(across, [row["identity_wrong"]] * 2, ":", color="0.5", label="mean with a wrong reference")
        axes.set_xticks(range(len(shown)), ticks)
        axes.spines[["top", "right"]].set_visible(False)
    left, right = figure.axes
    left.set_title("parts of the method")
    left.set_ylabel("cosine similarity of subject and reference")
    right.set_title("number of instruct tokens")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles[:3], labels[:3], loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, format="png", dpi=120)
