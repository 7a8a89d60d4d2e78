"""The report: one HTML page, whole in itself, that shows a run to a person. Nothing in it is fetched.

``write_report`` turns a finished run into plain view dictionaries (this file), charts (charts.py) and text
(report.html.jinja). The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from numbers import Integral, Real
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup
from PIL import Image

from data_schemas.io.storage import url_to_fs, write_file
from pipeline.report.charts import bound_text, histogram, number, training_curve

FUNNEL = ("planned", "made", "kept", "rejected", "undecided", "errors")
KEPT_SHOWN, REJECTED_SHOWN, GENERATED_SHOWN, ERRORS_SHOWN = 16, 24, 24, 50
TARGET_SIDE, TILE_SIDE = 400, 192
"""Longest side of the embedded pictures, in pixels: the large one of a card, and the small ones under it."""

Pictures = Callable[[str, str], Image.Image | None]
View = dict[str, Any]


@dataclass(frozen=True)
class RuleLine:
    """One filter of ``decide``: ``column`` must be at least ("min") or at most ("max") the threshold."""

    stage: str
    column: str
    bound: str
    threshold: float
    reason: str
    meaning: str

    def passes(self, value: float) -> bool:
        return value >= self.threshold if self.bound == "min" else value <= self.threshold


@dataclass(frozen=True)
class Training:
    """What the trainer, the evaluator and the sampler left.

    ``log`` holds the rows of metrics.jsonl: ``step`` with ``loss`` (nats) and ``samples_per_s``, or with
    ``val_loss`` and ``val_loss_target``; one row may have ``val_unigram_cross_entropy``. ``evaluation`` maps names to
    numbers, nested values are passed over. ``samples`` are (sample_id, generated picture). ``of_other_shards``: the
    model was trained on other shards than the page's dataset has.
    """

    log: list[dict]
    evaluation: dict
    samples: list[tuple[str, Image.Image]]
    of_other_shards: bool = False


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows. ``picture(sample_id, name)`` is None for a picture that was never made."""

    name: str
    manifest: pd.DataFrame
    rules: list[RuleLine]
    metrics: dict
    picture: Pictures
    config: dict
    training: Training | None


def write_report(data: ReportData, path: str) -> str:
    """Write the page to ``path`` (any fsspec URL) through a temporary name, and return ``path``."""
    fs, target = url_to_fs(path)
    write_file(fs, target, render(data).encode())
    return path


def render(data: ReportData) -> str:
    """The page as text. Every string from the data is escaped; only our own SVG is trusted as markup."""
    source = resources.files("pipeline.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=count_text, number=number_text, share=share_text)
    return environment.from_string(source).render(
        name=data.name,
        funnel=funnel_view(data),
        splits=data.metrics.get("splits") or {},
        planted=data.metrics.get("planted"),
        histograms=histogram_views(data),
        kept=kept_cards(data),
        rejected=rejected_cards(data),
        errors=error_views(data.manifest),
        training=training_view(data),
        stages=stage_views(data.metrics.get("stages") or {}),
        config=yaml_text(data.config),
    )


# Numbers and text


def count_text(value: object) -> str:
    """A count with thousands set apart; an en dash where there is none."""
    found = as_float(value)
    return f"{found:,.0f}" if math.isfinite(found) else "–"


def number_text(value: object) -> str:
    """A whole number in full, any other to three digits."""
    return count_text(value) if isinstance(value, Integral) else number(as_float(value))


def share_text(value: object) -> str:
    """A fraction as a percentage; never "100 %" or "0 %" for a share that is only close to it."""
    found = as_float(value)
    if not math.isfinite(found):
        return "–"
    digits = 1 if 0 < found < 0.01 or 0.99 < found < 1 else 0
    return f"{100 * found:.{digits}f} %"


def as_float(value: object) -> float:
    """The value as a number; NaN for None, text and anything else that is not one."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def as_text(value: object) -> str:
    """The value of a text column; empty for a null, in whichever way the table spells it."""
    return value if isinstance(value, str) else ""


def reasons_of(row: Mapping[str, Any]) -> list[str]:
    """The row's reason codes; a null column, a list and an array all read as a list."""
    reasons = row.get("reasons")
    if reasons is None or isinstance(reasons, str | float):
        return [reasons] if isinstance(reasons, str) and reasons else []
    return [str(reason) for reason in reasons]


def yaml_text(config: Mapping[str, Any]) -> str:
    """The config as YAML; a value YAML has no word for (a path, an enum) is shown as its text."""
    plain = json.loads(json.dumps(config, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


# Pictures


def data_uri(picture: Image.Image, side: int) -> str:
    """A JPEG thumbnail as a data URI; a transparent picture stands on a checkerboard of mid greys."""
    transparent = picture.has_transparency_data
    small = picture.convert("RGBA" if transparent else "RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if transparent:
        small = Image.alpha_composite(checkerboard(small.size), small).convert("RGB")
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def checkerboard(size: tuple[int, int], square: int = 8) -> Image.Image:
    """Greys that neither glare on a dark page nor vanish on a light one."""
    columns, lines = (math.ceil(length / square) for length in size)
    cells = bytes(214 if (x + y) % 2 else 192 for y in range(lines) for x in range(columns))
    board = Image.frombytes("L", (columns, lines), cells).resize(
        (columns * square, lines * square), Image.Resampling.NEAREST
    )
    return board.crop((0, 0, *size)).convert("RGBA")


def tile(data: ReportData, sample_id: str, name: str, caption: str, side: int = TILE_SIDE) -> View:
    picture = data.picture(sample_id, name)
    return {"caption": caption, "uri": data_uri(picture, side) if picture is not None else None}


# Views: plain dictionaries the template walks over


def funnel_view(data: ReportData) -> View:
    """Bars of the funnel, each with its share of what was planned."""
    funnel = data.metrics.get("funnel") or {}
    planned = as_float(funnel.get("planned"))

    def bar(label: str, count: object, kind: str, meaning: str = "") -> View:
        share = as_float(count) / planned if planned > 0 else 0.0
        return {"label": label, "count": count, "share": share, "kind": kind, "meaning": meaning}

    rejected_by_reason = funnel.get("rejected_by_reason") or {}
    meanings = {rule.reason: rule.meaning for rule in data.rules}
    order = {reason: place for place, reason in enumerate(meanings)}
    reasons = sorted(rejected_by_reason, key=lambda r: (-rejected_by_reason[r], order.get(r, len(order)), r))
    return {
        "totals": {key: funnel.get(key, 0) for key in FUNNEL},
        "kept_share": as_float(funnel.get("kept")) / planned if planned > 0 else math.nan,
        "road": [bar(key, funnel.get(key, 0), key) for key in FUNNEL[:3]],
        "lost": [bar(key, funnel.get(key, 0), key) for key in FUNNEL[3:]],
        "reasons": [bar(r, rejected_by_reason[r], "rejected", meanings.get(r, "")) for r in reasons],
    }


def rules_by_column(rules: Iterable[RuleLine]) -> dict[str, list[RuleLine]]:
    groups: dict[str, list[RuleLine]] = {}
    for rule in rules:
        groups.setdefault(rule.column, []).append(rule)
    return groups


def histogram_views(data: ReportData) -> list[View]:
    """One chart for each scored column, with the thresholds of all rules that read it."""
    views = []
    for place, (column, rules) in enumerate(rules_by_column(data.rules).items()):
        kept, rejected = (
            [as_float(value) for value in decided(data.manifest, decision).get(column, [])]
            for decision in ("kept", "rejected")
        )
        bounds = [(rule.bound, rule.threshold) for rule in rules]
        svg = histogram(kept, rejected, bounds, f"scores-{place}-{column}")
        views.append({"column": column, "rules": rules, "svg": Markup(svg) if svg else None})
    return views


def pill_views(row: Mapping[str, Any], rules: Iterable[RuleLine]) -> list[View]:
    """Each scored column of a sample against its thresholds; "unknown" where there is no score."""
    pills = []
    for column, group in rules_by_column(rules).items():
        value = as_float(row.get(column))
        passed = all(rule.passes(value) for rule in group)
        state = "unknown" if math.isnan(value) else "pass" if passed else "fail"
        bounds = " and ".join(bound_text(rule.bound, rule.threshold) for rule in group)
        hint = f"{group[0].stage}: {column} = {number(value)}, needs {bounds}"
        pills.append({"column": column, "value": number_text(row.get(column)), "state": state, "hint": hint})
    return pills


def card(data: ReportData, row: Mapping[str, Any]) -> View:
    """One curated sample: its pictures, what was asked for, its scores and its reasons."""
    sample_id = str(row["sample_id"])
    fault = as_text(row.get("planted_fault"))
    return {
        "sample_id": sample_id,
        "prompt": as_text(row.get("prompt")),
        "relation": as_text(row.get("relation")),
        "split": as_text(row.get("split")),
        "fault": fault if fault != "none" else "",
        "reasons": reasons_of(row),
        "pills": pill_views(row, data.rules),
        "large": [tile(data, sample_id, "target", "target", TARGET_SIDE)],
        "small": [
            *reference_tiles(data, row),
            tile(data, sample_id, "foreground", "foreground"),
            tile(data, sample_id, "background", "background"),
        ],
    }


def reference_tiles(data: ReportData, row: Mapping[str, Any]) -> list[View]:
    captions = {f"reference_{k}": as_text(row.get(f"reference_{k}_name")) or f"reference {k}" for k in (0, 1)}
    return [tile(data, str(row["sample_id"]), name, caption) for name, caption in captions.items()]


def spread(groups: Sequence[Sequence[Hashable]], limit: int) -> list[int]:
    """Up to ``limit`` places, in order, taken in turn from each group, the smallest first.

    ``groups[place]`` are the groups that place is in. If there are no more groups than room, each is seen.
    """
    queues: dict[Hashable, list[int]] = {}
    for place, names in enumerate(groups):
        for name in names:
            queues.setdefault(name, []).append(place)
    chosen: set[int] = set()
    while queues and len(chosen) < limit:
        for name in sorted(queues, key=lambda n: (len(queues[n]), str(n))):
            fresh = [place for place in queues[name] if place not in chosen]
            chosen.update(fresh[:1] if len(chosen) < limit else [])
            queues[name] = fresh[1:]
        queues = {name: places for name, places in queues.items() if places}
    return sorted(chosen)


def decided(manifest: pd.DataFrame, decision: str) -> pd.DataFrame:
    return manifest[manifest["decision"] == decision]


def records(frame: pd.DataFrame) -> list[View]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def kept_cards(data: ReportData) -> list[View]:
    """A few samples of every relation."""
    kept = decided(data.manifest, "kept")
    places = spread([[as_text(relation)] for relation in kept["relation"]], KEPT_SHOWN)
    return [card(data, row) for row in records(kept.iloc[places])]


def rejected_cards(data: ReportData) -> list[View]:
    """Every reason appears, and every planted fault (the rarest first, if there are more than fit)."""
    rejected = decided(data.manifest, "rejected")
    groups = [
        [*reasons_of(row), f"planted: {as_text(row['planted_fault'])}"]
        for row in records(rejected[["reasons", "planted_fault"]])
    ]
    return [card(data, row) for row in records(rejected.iloc[spread(groups, REJECTED_SHOWN)])]


def error_views(manifest: pd.DataFrame) -> View:
    """The first errors with their messages, and how many more there are."""
    errors = decided(manifest, "error")
    keys = ("sample_id", "error_stage", "error_code", "error_message")
    rows = [{key: as_text(row[key]) for key in keys} for row in records(errors.head(ERRORS_SHOWN))]
    return {"rows": rows, "more": len(errors) - len(rows)}


def stage_views(stages: Mapping[str, Mapping[str, Any]]) -> list[View]:
    slowest = max((as_float(stage.get("seconds")) for stage in stages.values()), default=0.0)
    return [
        {
            "name": name,
            "seconds": stage.get("seconds"),
            "parts": stage.get("parts"),
            "cached_parts": stage.get("cached_parts"),
            "share": as_float(stage.get("seconds")) / slowest if slowest > 0 else 0.0,
        }
        for name, stage in stages.items()
    ]


# Training


def training_view(data: ReportData) -> View | None:
    """The curve, its last numbers, the evaluation's numbers, generated pictures beside their targets."""
    if data.training is None:
        return None
    loss, val_loss, picture_loss = (series(data.training.log, key) for key in ("loss", "val_loss", "val_loss_target"))
    guesses = [value for _, value in series(data.training.log, "val_unigram_cross_entropy")]
    svg = training_curve(loss, val_loss, guesses[-1] if guesses else None, "training")
    speeds = sorted(value for _, value in series(data.training.log, "samples_per_s"))
    figures = {
        "steps": count_text(max((step for step, _ in loss + val_loss), default=None)),
        "last loss": number_text(loss[-1][1] if loss else None),
        "best validation loss": number_text(min((value for _, value in val_loss), default=None)),
        **({"of the picture alone": number_text(min(value for _, value in picture_loss))} if picture_loss else {}),
        "guessing by token frequency": number_text(guesses[-1] if guesses else None),
        "samples per second": number_text(speeds[len(speeds) // 2] if speeds else None),
    }
    evaluation = {
        name: number_text(value)
        for name, value in data.training.evaluation.items()
        if isinstance(value, Real) and not isinstance(value, bool)
    }
    shown = data.training.samples[:GENERATED_SHOWN]
    rows = records(data.manifest[data.manifest["sample_id"].isin([sample_id for sample_id, _ in shown])])
    by_id = {str(row["sample_id"]): row for row in rows}
    return {
        "svg": Markup(svg) if svg else None,
        "of_other_shards": data.training.of_other_shards,
        "figures": figures,
        "evaluation": evaluation,
        "cards": [generated_card(data, i, by_id.get(i), picture) for i, picture in shown],
        "more": len(data.training.samples) - len(shown),
    }


def series(log: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have the key and a finite value."""
    points = [(as_float(row.get("step")), as_float(row[key])) for row in log if key in row]
    return [(step, value) for step, value in points if math.isfinite(step) and math.isfinite(value)]


def generated_card(data: ReportData, sample_id: str, row: View | None, generated: Image.Image) -> View:
    """One generated picture beside its target, with what the model was given; alone if not of this run."""
    large = [{"caption": "generated", "uri": data_uri(generated, TARGET_SIDE)}]
    small: list[View] = []
    if row is not None:
        large.append(tile(data, sample_id, "target", "target", TARGET_SIDE))
        small = [*reference_tiles(data, row), tile(data, sample_id, "background", "background")]
    row = row or {}
    return {
        "sample_id": sample_id,
        "prompt": as_text(row.get("prompt")),
        "relation": as_text(row.get("relation")),
        "split": as_text(row.get("split")),
        "fault": "",
        "reasons": [],
        "pills": [],
        "large": large,
        "small": small,
    }
