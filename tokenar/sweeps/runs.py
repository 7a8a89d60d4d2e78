"""The runs of a sweep: each is trained and measured once, and a table compares them.

A finished run is not repeated, so a sweep that was stopped continues where it was.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_schemas.errors import UserError
from data_schemas.io.documents import read_json
from data_schemas.io.files import write_atomically
from data_schemas.shards import expand_shards
from tokenar.config import SampleConfig, TrainConfig
from tokenar.data.samples import read_samples
from tokenar.data.shard_index import Source
from tokenar.encoders.fitted import FittedTokenizer
from tokenar.evaluate.pictures import boxes_of
from tokenar.evaluate.run import evaluate_models
from tokenar.processes import Workers
from tokenar.sweeps.statistics import compared, interval
from tokenar.train.inputs import Inputs, chosen_ids, load_inputs
from tokenar.train.loop import train_model

METRICS = (
    "identity", "identity_wrong", "identity_target", "round_trip_identity", "swap_rate", "subjects_exact",
    "subjects_psnr", "background_psnr",
)  # fmt: skip
"""Figures of the evaluation that a table shows, as far as they were measured."""
TESTED = {"identity": "identity", "swap_rate": "swapped", "subjects_exact": "subjects_exact"}
"""Figures with intervals, and their column in per_sample.parquet."""


PARTS = ("index_embedding", "instruct_tokens", "identity_disentanglement")
"""The parts of the method, which no sample depends on."""


class EncodedOnce:
    """``load_inputs`` for the runs of a sweep. It reads and encodes again unless the settings differ in nothing but the
    seed (where samples are not varied), the run's folder and the parts of the method, and the same ids are chosen."""

    def __init__(self) -> None:
        self.known: dict[str, Inputs] = {}
        self.digests: dict[str, str] = {}

    def content(self, config: TrainConfig) -> str:
        """A digest of the shards and of the ids that are chosen of them. Shards are read once in a sweep."""
        urls = [url for pattern in (*config.every_shards, str(config.val_shards)) for url in expand_shards(pattern)]
        self.digests |= {url: Source.of(url).sha256 for url in urls if url not in self.digests}
        ids = chosen_ids(config)
        content = json.dumps([[self.digests[url] for url in urls], None if ids is None else sorted(ids)])
        return hashlib.sha256(content.encode()).hexdigest()

    def __call__(self, config: TrainConfig, group: Workers, fitted: Path, resumed: bool) -> Inputs:
        apart: dict[str, Any] = {"out": True, "only": True, "seed": not config.variations, "model": set(PARTS)}
        ids = chosen_ids(config)
        key = json.dumps([config.model_dump(mode="json", exclude=apart), None if ids is None else sorted(ids)])
        if key not in self.known:
            self.known[key] = load_inputs(config, group, fitted, resumed)
        elif isinstance(tokenizer := self.known[key].tokenizer, FittedTokenizer):
            write_atomically(fitted, tokenizer.save)
        return self.known[key]


def needs_held_out(config: TrainConfig) -> None:
    """UserError without validation shards that tell where their subjects are: a sweep measures identity on subjects
    that were not trained on."""
    if not config.val_shards:
        raise UserError("a sweep measures identity on held-out subjects; give --val-shards")
    if not any(map(boxes_of, read_samples(config.val_shards))):
        raise UserError(
            f"{config.val_shards}: no sample tells where its subjects are (boxes), which a sweep measures; give other "
            "--val-shards"
        )


def measured(
    name: str,
    configs: Sequence[TrainConfig],
    sampling: SampleConfig,
    limit: int | None,
    say: Callable[[str], None],
    load: EncodedOnce,
) -> dict[str, Any]:
    """Train and evaluate one run with several seeds; returns its row of the table. ``say`` gets a line for each.
    ``load`` is shared by the runs of a sweep."""
    figures, samples = [], []
    for config in configs:
        found = _one(config, sampling, limit, load)
        figures.append(found["figures"])
        samples.append(found["samples"])
        shown = figures[-1]
        say(f"{name}, seed {config.seed}: identity {shown['identity']:.4f} (wrong {shown['identity_wrong']:.4f})")
    means = {
        figure: [statistics.mean(values) for values in zip(*(each[figure] for each in samples), strict=True)]
        for figure in TESTED
        if samples[0].get(figure)
    }
    intervals = {f"{figure}_interval": list(interval(values)) for figure, values in means.items()}
    return {"run": name, "seeds": figures, "samples": means} | _means(figures) | intervals


def _one(config: TrainConfig, sampling: SampleConfig, limit: int | None, load: EncodedOnce) -> dict[str, Any]:
    """The figures of one run, and those of its samples. Nothing is done again if its folder has them for these
    settings and samples."""
    done, settings = Path(config.out) / "ablation.json", config.model_dump(mode="json")
    asked = {"train": settings, "content": load.content(config), "sampling": sampling.model_dump(), "limit": limit}
    with suppress(UserError, KeyError, TypeError):  # a file that cannot be read counts as missing
        earlier = read_json(done)
        if earlier["asked"] == asked:
            return {"figures": earlier["figures"], "samples": earlier["samples"]}
    summary = train_model(config, overwrite=True, load=load)
    if not summary["finished"]:
        raise UserError(f"{config.out}: stopped; the same command goes on from the runs that are whole")
    result = evaluate_models(
        str(config.val_shards), f"{config.out}/evaluation", models={"model": summary["model"]}, sampling=sampling,
        limit=limit, quiet=True,
    )  # fmt: skip
    every = result["methods"]["model"]["figures"]
    figures = {name: summary[name] for name in ("val_loss_target", "val_loss_subjects") if name in summary}
    figures |= {"seed": config.seed} | {key: every[key] for key in METRICS if every.get(key) is not None}
    rows = pq.read_table(f"{config.out}/evaluation/per_sample.parquet").sort_by("sample_id")
    samples = {
        figure: [float(value) for value in rows[column].to_pylist() if value is not None]
        for figure, column in TESTED.items()
        if column in rows.column_names
    }
    content = json.dumps({"asked": asked, "figures": figures, "samples": samples, "versions": result["versions"]})
    write_atomically(done, lambda path: path.write_text(content))
    return {"figures": figures, "samples": samples}


def _means(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every figure over the seeds and, with more than one seed, its standard deviation."""
    means: dict[str, Any] = {}
    for key in (k for k in figures[0] if k != "seed"):
        values = [float(row[key]) for row in figures]
        means[key] = statistics.mean(values)
        if len(values) > 1:
            means[f"{key}_std"] = statistics.stdev(values)
    return means


def compare(table: Sequence[dict[str, Any]], against: str) -> None:
    """Give every other row of the table ``against``: how its samples' identities differ from those of that run."""
    for base in (row for row in table if row["run"] == against):
        for row in (row for row in table if row is not base):
            row["against"] = against
            row |= compared(row["samples"]["identity"], base["samples"]["identity"])


def write_table(path: Path, table: Sequence[Mapping[str, Any]], extra: Sequence[str] = ()) -> None:
    """Write ``path`` (Markdown), with ``extra`` figures of the rows first, and the same with every seed as JSON."""
    columns = [key for key in (*extra, "val_loss_subjects", *METRICS) if key in table[0]]
    seeds = len(table[0]["seeds"])
    against = next((row["against"] for row in table if "against" in row), None)
    heads = ["run", *columns, *([f"identity against {against}", "p"] if against else [])]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in table:
        cells = [_cell(row, key) for key in columns]
        if against:
            cells += ["–", "–"]
            if "against" in row:
                low, high = row["interval"]
                cells[-2:] = [f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]", f"{row['p']:.3f}"]
        lines.append(f"| {row['run']} | " + " | ".join(cells) + " |")
    said = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    said += ", [95 % bootstrap interval over the test samples]; p: paired permutation test of the samples' identities."
    write_atomically(path, lambda temporary: temporary.write_text("\n".join([*lines, "", said, ""])))
    content = json.dumps(list(table), indent=2) + "\n"
    write_atomically(path.with_suffix(".json"), lambda temporary: temporary.write_text(content))


def _cell(row: Mapping[str, Any], key: str) -> str:
    if isinstance(row[key], int):
        return str(row[key])
    text = f"{row[key]:.4f}" + (f" ± {row[f'{key}_std']:.4f}" if f"{key}_std" in row else "")
    if f"{key}_interval" in row:
        text += " [{:.4f}, {:.4f}]".format(*row[f"{key}_interval"])
    return text
