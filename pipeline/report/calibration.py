"""Calibration: what each threshold of a stage would keep, compared with a floor of wrong references.

The floor consists of samples of the run that the same stage scores against references of other subjects, with the same
pictures and mattes (docs/differences.md, "Floor of wrong references"). A score is useful if the samples are well above
it. The run is not changed; ``<run>/calibration/<stage>/`` gets a page, the scores and a thresholds file for the config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from data_schemas.errors import UserError
from data_schemas.schema import Column, TableSchema
from data_schemas.settings import suggest
from data_schemas.tables import SAMPLE_ID
from pipeline.config import CurationConfig
from pipeline.core.parts import Part
from pipeline.core.rules import resolve_rules
from pipeline.core.stage import Rule, Sample, Stage
from pipeline.jobs import PartJob, need_part, pool_digest
from pipeline.making import stage_inputs
from pipeline.run import Run

QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
CANDIDATES = (1, 5, 10, 25, 50, 75, 90)
"""QUANTILES are shown, in percent; CANDIDATES are tried as thresholds (for an upper bound, 100 minus these)."""
TELLS = 0.7  # least AUC at which the floor of wrong references says where a threshold belongs

WRONG = [f"{kind}_{i}_{what}" for i in range(2) for kind, what in
         (("reference", "id"), ("reference", "name"), ("reference", "category"), ("subject", "id"))]  # fmt: skip
"""Columns of the plan that a floor sample takes from another sample."""

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """One threshold and what it would keep.

    ``alone`` counts samples that pass this rule, ``together`` those that pass all rules; ``floor_share`` is the share
    of the floor that passes this rule.
    """

    threshold: float
    alone: int
    together: int
    floor_share: float


@dataclass(frozen=True)
class RuleFigures:
    """The measurements of one rule. ``rule`` has the threshold of the config.

    ``scores`` (by sample id) and ``floor`` hold finite numbers only. ``auc`` is the probability that a sample is
    further on the passing side than a floor sample (0.5 is chance); NaN if the floor says nothing. ``suggested`` is the
    threshold with the largest difference between the passing shares of samples and floor (Youden's J).
    """

    rule: Rule
    scores: pd.Series
    floor: np.ndarray
    auc: float
    suggested: float | None
    note: str
    candidates: tuple[Candidate, ...]

    def quantiles(self) -> dict[int, float]:
        """The scores at QUANTILES."""
        return dict(zip(QUANTILES, np.quantile(self.scores, [q / 100 for q in QUANTILES]).tolist(), strict=True))

    def at(self, threshold: float) -> Candidate:
        """The candidate with this threshold."""
        return next(c for c in self.candidates if c.threshold == threshold)


@dataclass(frozen=True)
class Calibration:
    """The measurements of one stage of a run.

    ``table`` has the columns of ``table_schema``. ``judged_by`` names the stages whose rules count as "all rules".
    """

    run: Run
    stage: Stage
    model: str
    samples: int
    judged_by: list[str]
    table: pd.DataFrame
    figures: list[RuleFigures]

    @property
    def floor_samples(self) -> int:
        """The number of floor samples in the table."""
        return int((self.table.kind == "floor").sum())

    def separation(self) -> dict[str, float]:
        """The AUC of samples against the floor for every score of the stage, also for those without a rule."""
        run, floor = (self.table[self.table.kind == kind] for kind in ("run", "floor"))
        return {
            column.name: area_under_curve(
                run[column.name].dropna().to_numpy(), floor[column.name].dropna().to_numpy(), "min"
            )
            for column in score_columns(self.stage)
        }


def measure(config: CurationConfig, stage_name: str, floor_samples: int = 64) -> Calibration:
    """Measure a stage of a run without writing anything. Raises UserError like ``calibrate``."""
    run = Run.of(config)
    scored = {stage.name: stage for stage in run.stages()}
    if stage_name not in scored or not scored[stage_name].rules:
        known = [name for name, stage in scored.items() if stage.rules]
        raise UserError(f"calibrate {stage_name}: no stage with rules has this name; {suggest(stage_name, known)}")
    stage = scored[stage_name]
    parts = {p: part for p in run.parts() if (part := run.store(stage_name).read(p)) is not None}
    if not parts:
        raise UserError(f"{config.run_url}: stage {stage_name} has no finished part; run the curation first")
    frames = {stage_name: _frame(list(parts.values()))} | _other_frames(run, stage_name, list(parts))
    own = frames[stage_name]
    rows = _plan_rows(run, list(parts))
    plan = pd.DataFrame(rows).set_index("sample_id")[["reference_0_id", "reference_1_id"]]
    names = [column.name for column in score_columns(stage)]
    seen = own[own.status == "ok"].join(plan, on="sample_id").assign(kind="run")
    floor = pd.DataFrame(floor_rows(run, stage, list(parts), rows, set(seen.sample_id), floor_samples))
    columns = ["sample_id", "kind", "reference_0_id", "reference_1_id", *names]
    table = pd.concat([seen[columns], floor.reindex(columns=columns)], ignore_index=True)
    table[names] = table[names].astype(float)
    rules = [(n, r) for n, r in resolve_rules(run.stages(), config.decide.all_thresholds()) if n in frames]
    figures = [rule_figures(rule, table, frames, rules) for name, rule in rules if name == stage_name]
    return Calibration(run, stage, own.model.iloc[0], len(own), list(frames), table, figures)


def _frame(parts: Sequence[Part]) -> pd.DataFrame:
    return pa.concat_tables([part.table.replace_schema_metadata() for part in parts]).to_pandas()


def _other_frames(run: Run, but: str, parts: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The rows of the other stages that have rules, if all these parts of theirs exist."""
    frames = {}
    for stage in run.stages():
        if stage.rules and stage.name != but:
            found = [part for p in parts if (part := run.store(stage.name).read(p)) is not None]
            if len(found) == len(parts):
                frames[stage.name] = _frame(found)
    return frames


def _plan_rows(run: Run, parts: Sequence[str]) -> list[dict]:
    return [row for part in parts for row in need_part(run, "plan", part).rows()]


def score_columns(stage: Stage) -> list[Column]:
    """The columns of a stage that hold numbers."""
    return [c for c in stage.columns if pa.types.is_floating(c.type) or pa.types.is_integer(c.type)]


def table_schema(stage: Stage) -> TableSchema:
    """The schema of scores.parquet: one row for each sample of the run, then one for each floor sample."""
    kind = Column("kind", pa.string(), "run, or floor: scored against wrong references.", "code",
                  one_of=("run", "floor"))  # fmt: skip
    references = (Column(f"reference_{i}_id", pa.string(), "Reference it was scored against.", "id") for i in range(2))
    scores = (replace(c, type=pa.float64(), nullable=True) for c in score_columns(stage))
    return TableSchema("calibration", 1, (SAMPLE_ID, kind, *references, *scores))


# The floor


def floor_rows(
    run: Run, stage: Stage, parts: Sequence[str], plan: Sequence[dict], usable: set[str], count: int
) -> list[dict]:
    """Scores of up to ``count`` samples against wrong references, from parts that are spread over the run.

    Samples on which the stage fails are left out, and samples that share a subject with every other sample.
    """
    pool = pool_digest(run)
    row_of = {row["sample_id"]: k for k, row in enumerate(plan)}
    rows: list[dict] = []
    chosen = spread_evenly(parts, math.ceil(count * len(parts) / run.config.samples))
    for k, part in enumerate(chosen):
        inputs = stage_inputs(PartJob(run, stage.name, part, "", pool), stage.reads)
        samples = [s for s in inputs.samples()[0] if s.sample_id in usable]
        wanted = math.ceil((count - len(rows)) / (len(chosen) - k))
        wrong = [wrong_sample(s, plan, row_of[s.sample_id]) for s in spread_evenly(samples, wanted)]
        made, _, _ = stage.run([s for s in wrong if s is not None], {})
        plans = {s.sample_id: s.plan for s in wrong if s is not None}
        rows += [
            {**row, "kind": "floor", **{key: plans[row["sample_id"]][key] for key in WRONG}}
            for row in made
            if row["status"] == "ok"
        ]
    return rows


def wrong_sample(sample: Sample, plan: Sequence[dict], row: int) -> Sample | None:
    """The sample with the references of another one that shares none of its subjects; None if there is no such sample.

    ``row`` is its index in the plan. The search starts half a plan away, so that the samples get different references,
    and the same ones every time.
    """
    own = {sample.plan["subject_0_id"], sample.plan["subject_1_id"]}
    for step in range(len(plan)):
        donor = plan[(row + len(plan) // 2 + step) % len(plan)]
        if not own & {donor["subject_0_id"], donor["subject_1_id"]}:
            wrong = {**sample.plan, **{key: donor[key] for key in WRONG}}
            return replace(sample, rows={**sample.rows, "plan": wrong}, saved={})
    return None


def spread_evenly(things: Sequence[T], count: int) -> list[T]:
    """``count`` of the things at even distances, including the first and the last; all if there are fewer."""
    chosen = np.linspace(0, len(things) - 1, min(count, len(things))).round().astype(int)
    return [things[k] for k in chosen.tolist()]


# Figures


def rule_figures(
    rule: Rule, table: pd.DataFrame, frames: Mapping[str, pd.DataFrame], rules: Sequence[tuple[str, Rule]]
) -> RuleFigures:
    """The measurements of one rule.

    ``table`` has the scores, ``frames`` the rows of the stages by name, and ``rules`` all rules with the config's
    thresholds.
    """
    scores, floor = (
        rows.set_index("sample_id")[rule.column].dropna() for rows in (table[table.kind == k] for k in ("run", "floor"))
    )
    if len(scores) < 2:
        raise UserError(f"calibrate: {len(scores)} samples have a {rule.column}, at least 2 are needed; make more")
    auc, suggested, note = separate(scores, floor, rule)
    whole = np.logical_and.reduce([(frame.status == "ok").to_numpy() for frame in frames.values()])
    others = [passing(r, frames[name][r.column]) for name, r in rules if r != rule]
    rest = np.logical_and.reduce([whole, *others])
    own = next(frame for name, frame in frames.items() if (name, rule) in rules)

    def candidate(threshold: float) -> Candidate:
        tried = replace(rule, threshold=threshold)
        kept = passing(tried, own[rule.column])
        share = float(passing(tried, floor).mean()) if len(floor) else math.nan
        return Candidate(threshold, int(kept.sum()), int((kept & rest).sum()), share)

    levels = [q / 100 if rule.bound == "min" else 1 - q / 100 for q in CANDIDATES]
    tried = {round(float(np.quantile(scores, level)), 3) for level in levels} | {rule.threshold}
    tried |= {suggested} if suggested is not None else set()
    return RuleFigures(
        rule, scores, floor.to_numpy(), auc, suggested, note, tuple(candidate(t) for t in sorted(tried))
    )  # fmt: skip


def passing(rule: Rule, scores: pd.Series) -> np.ndarray:
    """Which scores pass the rule; a missing score does not."""
    values = scores.to_numpy(dtype=float, na_value=np.nan)
    return values >= rule.threshold if rule.bound == "min" else values <= rule.threshold


def area_under_curve(scores: np.ndarray, floor: np.ndarray, bound: str) -> float:
    """The share of (sample, floor) pairs in which the sample is further on the passing side; a tie counts half."""
    if not len(scores) or not len(floor):
        return math.nan
    ordered = np.sort(floor)
    below = (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2
    share = float(below.mean() / len(floor))
    return share if bound == "min" else 1 - share


def separate(scores: pd.Series, floor: pd.Series, rule: Rule) -> tuple[float, float | None, str]:
    """(AUC, suggested threshold or None, a remark) for scores and floor, both by sample id."""
    if floor.empty:
        return math.nan, None, "There is no floor to compare with."
    if np.array_equal(scores.reindex(floor.index).to_numpy(), floor.to_numpy()):
        return math.nan, None, "Wrong references leave this score as it is, so the floor says nothing about it."
    auc = area_under_curve(scores.to_numpy(), floor.to_numpy(), rule.bound)
    if auc < TELLS:
        return auc, None, "Wrong references pass this rule about as well as right ones: the floor cannot place it."
    best = youden(scores.to_numpy(), floor.to_numpy(), rule.bound)
    return auc, best, "The suggestion is where samples and floor are furthest apart (Youden's J)."


def youden(scores: np.ndarray, floor: np.ndarray, bound: str) -> float:
    """The threshold that separates ``scores`` from ``floor`` best, to four digits (Youden's J).

    It has the largest difference between the passing shares of both, and lies midway between two neighbouring values.
    If several are equally good, the one in the widest gap wins.
    """
    values = np.unique(np.concatenate([scores, floor]))
    between, gaps = (values[1:] + values[:-1]) / 2, np.diff(values)
    below = [np.searchsorted(np.sort(x), between) / len(x) for x in (scores, floor)]  # no value lies on a midpoint
    gain = below[1] - below[0] if bound == "min" else below[0] - below[1]
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return round(float(between[best[gaps[best].argmax()]]), 4)


# Text


def text_table(found: Calibration) -> str:
    """The measurements as a table for a terminal."""
    head = f"{found.stage.name}: {found.samples} samples, floor of {found.floor_samples}"
    lines = [head, "", f"{'score':<20} {'needs':>9} {'alone':>7} {'all':>7} {'floor':>7}"]
    for figures in found.figures:
        sign = ">=" if figures.rule.bound == "min" else "<="
        auc = f", AUC {figures.auc:.3f}" if math.isfinite(figures.auc) else ""
        lines.append(f"{figures.rule.column} ({figures.rule.reason}){auc}")
        for c in figures.candidates:
            marks = [
                m for m, t in (("now", figures.rule.threshold), ("suggested", figures.suggested)) if t == c.threshold
            ]
            shares = (c.alone / found.samples, c.together / found.samples, c.floor_share)
            numbers = " ".join(f"{100 * s:>6.1f}%" if math.isfinite(s) else f"{'-':>7}" for s in shares)
            lines.append(f"{'':<20} {sign} {c.threshold:>6.4g} {numbers}  {', '.join(marks)}".rstrip())
    return "\n".join(lines)


def thresholds_text(found: Calibration) -> str:
    """The content of thresholds.yaml: the suggested thresholds, or the current ones where there is no suggestion.

    Configured thresholds of other stages are kept.
    """
    config = found.run.config
    lines = [
        f"# Thresholds of stage {found.stage.name}, from {found.samples} samples of run {config.name} and a floor of",
        f"# {found.floor_samples} with wrong references. The config names this file as decide.thresholds_file.",
        "thresholds:",
    ]
    own = {figures.rule.reason for figures in found.figures}
    for reason, threshold in sorted(config.decide.all_thresholds().items()):
        if reason not in own:
            lines += ["  # of another stage, as configured", f"  {reason}: {threshold!r}"]
    for figures in found.figures:
        rule, value = figures.rule, figures.suggested
        chosen = figures.at(rule.threshold if value is None else value)
        origin = "as it was" if value is None else f"suggested, was {rule.threshold:g}"
        sign = ">=" if rule.bound == "min" else "<="
        floor = f", passes {100 * chosen.floor_share:.0f} % of the floor" if len(figures.floor) else ""
        lines += [
            f"  # {rule.column} {sign} {chosen.threshold:g} ({origin}): keeps {chosen.alone} of {found.samples} alone, "
            f"{chosen.together} with all rules{floor}",
            f"  {rule.reason}: {chosen.threshold!r}",
        ]
    return "\n".join(lines) + "\n"
