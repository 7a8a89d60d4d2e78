"""Calibration: what each threshold of a stage would keep, compared with a floor of wrong references.

The floor consists of samples of the run that the same stage scores against references of other subjects, with the same
pictures and mattes (docs/differences.md, "Floor of wrong references"). A score is useful if the samples are well above
it. The run is not changed; ``<run>/calibration/<stage>/`` gets a page, the scores and a thresholds file for the config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import pyarrow as pa

from data_schemas.errors import UserError
from data_schemas.schema import Column, TableSchema
from data_schemas.settings import suggest
from data_schemas.tables import SAMPLE_ID
from pipeline.config import CurationConfig
from pipeline.core.parts import Part
from pipeline.core.stage import Stage
from pipeline.jobs import planned_part
from pipeline.report.calibration.figures import RuleFigures, rule_figures
from pipeline.report.calibration.floor import floor_rows
from pipeline.report.calibration.labels import counted, labels_of
from pipeline.report.calibration.suggestion import area_under_curve
from pipeline.run import Run


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

    def labelled_text(self) -> str:
        """How many samples of the run are labelled good and bad, and by whom, in words."""
        labelled = self.table[self.table.label.notna()]
        if labelled.empty:
            return "no labels"
        bad = int((labelled.label == "bad").sum())
        return f"{bad} bad and {len(labelled) - bad} good labels, {counted(labelled.labelled_by)}"

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
    plans = {p: part for p in run.parts() if (part := run.store("plan").read(p)) is not None}
    parts = {p: part for p, plan in plans.items() if (part := planned_part(run, stage_name, p, plan)) is not None}
    if not parts:
        raise UserError(f"{config.run_url}: stage {stage_name} has no finished part; run the curation first")
    plans = {p: plans[p] for p in parts}
    frames = {stage_name: _frame(list(parts.values()))} | _other_frames(run, stage_name, plans)
    own = frames[stage_name]
    rows = [row for part in plans.values() for row in part.rows()]
    plan = pd.DataFrame(rows).set_index("sample_id")[["reference_0_id", "reference_1_id"]]
    names = [column.name for column in score_columns(stage)]
    seen = own[own.status == "ok"].join(plan, on="sample_id").assign(kind="run")
    floor = pd.DataFrame(floor_rows(run, stage, list(parts), rows, set(seen.sample_id), floor_samples))
    labels = labels_of(run)
    columns = ["sample_id", "kind", "reference_0_id", "reference_1_id", *names]
    table = pd.concat([seen[columns], floor.reindex(columns=columns)], ignore_index=True)
    table[names] = table[names].astype(float)
    table = _labelled(table, labels)
    rules = [(n, r) for n, r in run.rules if n in frames]
    figures = [rule_figures(rule, table, frames, rules, labels) for name, rule in rules if name == stage_name]
    return Calibration(run, stage, own.model.iloc[0], len(own), list(frames), table, figures)


def _labelled(table: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The table with the labels of the run's samples; floor samples have none."""
    of_run = labels.reindex(table.sample_id.where(table.kind == "run")).reset_index(drop=True)
    label = of_run.bad.map({True: "bad", False: "good"})
    added = {"label": label, "labelled_by": of_run.labelled_by, "planted_fault": of_run.planted_fault}
    return table.assign(**{name: values.astype(object).where(values.notna(), None) for name, values in added.items()})


def _frame(parts: Sequence[Part]) -> pd.DataFrame:
    return pa.concat_tables([part.table.replace_schema_metadata() for part in parts]).to_pandas()


def _other_frames(run: Run, but: str, plans: Mapping[str, Part]) -> dict[str, pd.DataFrame]:
    """The rows of the other stages that have rules, if they made all these parts of the plan."""
    frames = {}
    for stage in run.stages():
        if stage.rules and stage.name != but:
            found = [made for p, plan in plans.items() if (made := planned_part(run, stage.name, p, plan)) is not None]
            if len(found) == len(plans):
                frames[stage.name] = _frame(found)
    return frames


def score_columns(stage: Stage) -> list[Column]:
    """The columns of a stage that hold numbers."""
    return [c for c in stage.columns if pa.types.is_floating(c.type) or pa.types.is_integer(c.type)]


def table_schema(stage: Stage) -> TableSchema:
    """The schema of scores.parquet: one row for each sample of the run, then one for each floor sample."""
    kind = Column("kind", pa.string(), "run, or floor: scored against wrong references.", "code",
                  one_of=("run", "floor"))  # fmt: skip
    references = (Column(f"reference_{i}_id", pa.string(), "Reference it was scored against.", "id") for i in range(2))
    scores = (replace(c, type=pa.float64(), nullable=True) for c in score_columns(stage))
    labels = (
        Column("label", pa.string(), "What is known of the sample; null for most.", "code", nullable=True,
               one_of=("good", "bad")),
        Column("labelled_by", pa.string(), "Who knows it: the drawer that planted faults, or a person.", "code",
               nullable=True, one_of=("planted", "person")),
        Column("planted_fault", pa.string(), "The fault that was planted, whatever a person said.", "code",
               nullable=True),
    )  # fmt: skip
    return TableSchema("calibration", 2, (SAMPLE_ID, kind, *references, *scores, *labels))
