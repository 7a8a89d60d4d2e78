"""The results of a finished curation: metrics, the dataset card, the report and tables for Prefect."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

import fsspec
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.documents import parse_json
from data_schemas.io.storage import patiently, read_facts, url_to_fs, write_file
from data_schemas.io.text import one_line
from pipeline.config import CurationConfig
from pipeline.curate import CurationResult, curate
from pipeline.dataset.facts import licences
from pipeline.dataset.picture_reader import PictureReader
from pipeline.dataset.publish import Tables, make_manifest, shard_digests
from pipeline.jobs import pool_digest, pool_rows, read_all
from pipeline.making import PartSummary
from pipeline.report.card import dataset_card, pool_facts
from pipeline.report.data import Against, ReportData, RuleLine, Training
from pipeline.report.page.against import compare
from pipeline.report.page.render import write_report
from pipeline.report.planted import planted
from pipeline.report.thumbnails import data_uri
from pipeline.review.agreement import agreement
from pipeline.run import Run
from pipeline.synthesis.collage import CollageConfig


def read_manifest(result: CurationResult) -> pd.DataFrame:
    """The manifest of a finished run."""
    with fsspec.open(result.manifest_url, "rb") as file:
        return _as_frame(file)


def _as_frame(file: IO[bytes]) -> pd.DataFrame:
    """A manifest. Columns that a user's own stage need not have are there and empty."""
    manifest = pq.read_table(file).to_pandas()
    return manifest.assign(**{name: None for name in ("planted_fault", "true_iou") if name not in manifest})


def metrics_of(result: CurationResult, manifest: pd.DataFrame) -> dict[str, Any]:
    """The funnel, the splits, each stage's yield and cost, and the filters' precision and recall on planted faults."""
    numbers = funnel(manifest, result.run)
    return {
        "name": result.run.config.name,
        "funnel": numbers,
        "yield": yields(manifest, result.run),
        "splits": {s: int(n) for s, n in manifest[manifest.shard.notna()].split.value_counts().items()},
        "apart": result.apart,
        "agreement": agreement(result.run),
        "planted": planted(manifest),
        "matting_true_iou": _mean(manifest[manifest.planted_fault == "none"].true_iou),
        "stages": {
            stage: {
                "parts": len(summaries),
                "cached_parts": sum(s.cached for s in summaries),
                **cost(summaries, numbers["kept"]),
            }
            for stage, summaries in result.summaries.items()
        },
    }


def yields(manifest: pd.DataFrame, run: Run) -> dict[str, float]:
    """The share of the samples that no stage up to this one failed on or had rejected; and the share kept as "all".

    A sample that a person rejected, or that lacks a score, is lost after the last stage.
    """
    stages = [stage.name for stage in run.stages()]
    stage_of = {rule.reason: stage for stage, rule in run.rules}
    lost: Counter[str] = Counter()
    for decision, reasons, failed in manifest[["decision", "reasons", "error_stage"]].itertuples(index=False):
        at = [failed] if decision == "error" else [stage_of[reason] for reason in reasons if reason in stage_of]
        if decision != "kept" and at:
            lost[min(at, key=stages.index)] += 1
    gone, shares = 0, {}
    for stage in stages:
        gone += lost[stage]
        shares[stage] = round(1 - gone / len(manifest), 4)
    return {**shares, "all": round((manifest.decision == "kept").mean(), 4)}


def cost(summaries: Sequence[PartSummary], kept: int) -> dict[str, float | None]:
    """What a stage cost, also in earlier curations where its parts are from the cache: seconds of its workers and of
    GPUs, seconds a sample, and hours for a thousand kept samples; of GPUs where the stage used one, else of workers."""
    seconds, gpu = sum(s.seconds for s in summaries), sum(s.gpu_seconds for s in summaries)
    tried = sum(count for s in summaries for status, count in s.counts.items() if status != "skipped")
    return {
        "seconds": round(seconds, 3),
        "gpu_seconds": round(gpu, 3),
        "seconds_per_sample": round((gpu or seconds) / tried, 4) if tried else None,
        "hours_per_thousand_kept": round((gpu or seconds) / 3.6 / kept, 4) if kept else None,
    }


def funnel(manifest: pd.DataFrame, run: Run) -> dict[str, Any]:
    """How many samples were planned, made, failed, undecided, rejected and kept, and how many each reason rejected.

    A sample can have several reasons.
    """
    decisions = manifest.decision.value_counts()
    rejected = manifest[manifest.decision == "rejected"]
    return {
        "planned": len(manifest),
        "made": read_all(run, "synthesis")["status"].to_pylist().count("ok"),
        "errors": int(decisions.get("error", 0)),
        "undecided": int(decisions.get("undecided", 0)),
        "rejected": int(decisions.get("rejected", 0)),
        "kept": int(decisions.get("kept", 0)),
        "rejected_by_reason": {str(k): int(n) for k, n in rejected.reasons.explode().value_counts().items()},
        "reference_errors": _reference_errors(run),
    }


def _reference_errors(run: Run) -> int:
    return sum(row["status"] == "error" for row in pool_rows(run))


def write_results(result: CurationResult) -> dict[str, str]:
    """Write metrics.json, the dataset card and the report. Returns their paths by name.

    The first entry, "kept", is not a path but the outcome in words. There are shards only of splits with kept samples.
    """
    config, manifest = result.run.config, read_manifest(result)
    fs, root = url_to_fs(config.run_url)
    metrics = metrics_of(result, manifest)
    before = read_facts(fs, f"{root}/metrics.json")
    write_file(fs, f"{root}/metrics.json", json.dumps(metrics, indent=2).encode())
    fs, shards = url_to_fs(result.dataset_url)
    write_file(fs, f"{shards}/README.md", card_of(result, manifest, metrics).encode())
    names = {"train": "shards", "test": "test_shards"}
    return {
        "kept": outcome(metrics["funnel"], before and before.get("funnel")),
        "report": _write_report(result.run, manifest, metrics),
        "metrics": f"{config.run_url}/metrics.json",
        "manifest": result.manifest_url,
        **{names[s]: f"{result.dataset_url}/{s}-*.tar" for s in names if metrics["splits"].get(s)},
    }


def curate_dataset(config: CurationConfig, again: str | None = None, retry_errors: bool = False) -> dict[str, str]:
    """Curate a dataset (see ``pipeline.curate.curate``) and write its report; returns what ``write_results`` does."""
    return write_results(curate(config, again=again, retry_errors=retry_errors))


def outcome(funnel: dict[str, Any], before: dict[str, Any] | None) -> str:
    """The numbers of kept, rejected, undecided and failed samples in one line.

    ``before`` is the funnel of the last curation.
    """
    was = None if before is None else before.get("kept")
    compared = "" if was is None else " (as before)" if was == funnel["kept"] else f" (was {was})"
    texts = [f"{funnel['kept']} of {funnel['planned']}{compared}"]
    if funnel["rejected"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in funnel["rejected_by_reason"].items())
        texts.append(f"rejected {funnel['rejected']}: {reasons}")
    texts += [f"{what} {funnel[what]}" for what in ("undecided", "errors") if funnel[what]]
    return "; ".join(texts)


def card_of(result: CurationResult, manifest: pd.DataFrame, metrics: dict[str, Any]) -> str:
    """The dataset card of a finished run."""
    run, config = result.run, result.run.config
    fs, dataset = url_to_fs(result.dataset_url)
    return dataset_card(
        metrics=metrics,
        config=config.model_dump(mode="json"),
        fingerprints=dict(run.fingerprints),
        models={stage.name: stage.model_name() for stage in run.stages()},
        licences=licences(run.stages()),
        rules=run.rules,
        pools=pool_facts(
            config.references,
            pool_rows(run),
            backgrounds=isinstance(config.synthesis, CollageConfig),
        ),
        relations={str(k): int(n) for k, n in manifest[manifest.decision == "kept"].relation.value_counts().items()},
        version=str((read_facts(fs, f"{dataset}/run.json") or {}).get("version")),
    )


def report_run(config: CurationConfig, against: str | None = None) -> str:
    """Write the report of a finished run again from its files, including a training beside it. Returns its URL.

    ``against`` is an earlier run, or a dataset's folder, that the page compares the run with.
    """
    run = Run.of(config)
    fs, root = url_to_fs(config.run_url)
    metrics = read_facts(fs, f"{root}/metrics.json")
    if metrics is None:
        raise UserError(f"{config.run_url}: no finished curation of this config is there; run it first")
    compared = None if against is None else compare(against, config.run_url)
    return _write_report(run, _as_frame(io.BytesIO(make_manifest(Tables(run)))), metrics, compared)


def _write_report(run: Run, manifest: pd.DataFrame, metrics: dict[str, Any], against: Against | None = None) -> str:
    config = run.config
    rules = [RuleLine(**vars(r), stage=stage) for stage, r in run.rules]
    reader = PictureReader(run, pool_digest(run))
    data = ReportData(
        config.name, manifest, rules, metrics, reader.picture, config.model_dump(mode="json"),
        read_training(f"{config.run_url}/training", run), pool_rows(run), reader.cutout,
        metrics.get("agreement") or [], against,
    )  # fmt: skip
    return write_report(data, f"{config.run_url}/report/index.html")


def read_training(folder: str, run: Run | None = None) -> Training | None:
    """The results of the trainer (metrics.jsonl) and the evaluator (evaluation/) in a folder; None without a training.

    Only figures of our own model are read. ``run`` is the curation whose dataset the model should have been trained on.
    Unreadable files are treated as missing.
    """
    fs, root = url_to_fs(folder)
    if not patiently(lambda: fs.exists(f"{root}/metrics.jsonl"), folder):
        return None
    log = list(_rows(fs.cat_file(f"{root}/metrics.jsonl").decode(errors="replace")))
    evaluation, drawn = {}, f"{root}/samples"
    methods = (read_facts(fs, f"{root}/evaluation/metrics.json") or {}).get("methods", {})
    name = next((name for name, method in methods.items() if "model" in method), None)
    if name is not None:
        evaluation, drawn = _headline(methods[name]["figures"]), f"{root}/evaluation/{name}/samples"
    trained_on = _digests((read_facts(fs, f"{root}/summary.json") or {}).get("shards"))
    of_other_shards = run is not None and bool(trained_on) and _differ(run, trained_on)
    return Training(log, evaluation, _drawn(fs, drawn), of_other_shards)


def _digests(shards: object) -> set[str]:
    """The digests of the shards that a trainer states: a list, in earlier runs a mapping of names to digests."""
    if isinstance(shards, dict):
        return set(map(str, shards.values()))
    entries = shards if isinstance(shards, list) else []
    return {str(entry.get("sha256")) for entry in entries if isinstance(entry, dict)}


def _differ(run: Run, trained_on: set[str]) -> bool:
    """Whether the training shards of the run's dataset, if it has any, are others than those with these digests."""
    shards = {digest for name, digest in shard_digests(Tables(run)).items() if name.startswith("train-")}
    return bool(shards) and shards != trained_on


def _rows(text: str) -> Iterator[dict[str, Any]]:
    """The objects in JSON lines. The last line may be incomplete."""
    for line in text.splitlines():
        try:
            row = parse_json(line, "a line")
        except UserError:
            continue
        if isinstance(row, dict):
            yield row


def _drawn(fs: fsspec.AbstractFileSystem, folder: str) -> list[tuple[str, Image.Image]]:
    """(sample id, picture) of the generated pictures in a folder."""
    try:
        entries = parse_json(fs.cat_file(f"{folder}/samples.json").decode(), folder)
        return [(e["sample_id"], pictures.decode(fs.cat_file(f"{folder}/{e['file']}"), e["file"])) for e in entries]
    except (FileNotFoundError, UserError):
        return []


def _headline(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that the page shows, without those of single subjects and of the tokenizer alone."""
    return {k: v for k, v in figures.items() if not re.match(r"round_trip|subject_\d|similarity_\d", k)}


def funnel_rows(result: CurationResult, manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """The funnel as rows of a table."""
    numbers = funnel(manifest, result.run)
    reasons = numbers.pop("rejected_by_reason")
    rows = [{"what": what, "samples": count} for what, count in numbers.items()]
    return rows + [{"what": f"rejected: {reason}", "samples": count} for reason, count in reasons.items()]


def picture_table(result: CurationResult, manifest: pd.DataFrame, count: int = 4, side: int = 160) -> str:
    """Markdown with some kept and some rejected targets, inlined, with prompts and reasons."""
    reader = PictureReader(result.run, result.pool_digest)
    lines = []
    for decision in ("kept", "rejected"):
        rows = manifest[manifest.decision == decision]
        lines += [
            f"## {decision}: {len(rows)} of {len(manifest)}",
            "",
            "| picture | prompt | reasons |",
            "|---|---|---|",
        ]
        for sample_id, prompt, reasons in rows.head(count)[["sample_id", "prompt", "reasons"]].itertuples(index=False):
            picture = reader.picture(sample_id, "target")
            shown = f"![{sample_id}]({data_uri(picture, side)})" if picture else "no picture"
            lines.append(f"| {shown} | {_as_text(prompt)} | {', '.join(map(_as_text, reasons)) or 'none'} |")
        lines.append("")
    return "\n".join(lines)


def _as_text(words: str) -> str:
    """Text with Markdown's special characters escaped, because prompts contain names of a user's files."""
    return re.sub(r"([\\`*_\[\]<>|#!~&])", r"\\\1", one_line(words))


def _mean(values: pd.Series) -> float | None:
    return round(float(values.mean()), 4) if values.notna().any() else None
