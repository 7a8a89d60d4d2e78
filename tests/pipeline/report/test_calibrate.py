"""Calibration of the small run on real photographs, and its figures by hand."""

import hashlib
import math
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small.curation import small_config
from troubled.runs import config, stopped_before

from data_schemas.errors import UserError
from data_schemas.schema import validate
from pipeline.config import read_thresholds
from pipeline.core.stage import Rule
from pipeline.curate import curate
from pipeline.identity.compare import Identity
from pipeline.jobs import PartJob, read_all
from pipeline.making import stage_inputs
from pipeline.report.calibration.figures import rule_figures
from pipeline.report.calibration.floor import WRONG, spread_evenly, wrong_sample
from pipeline.report.calibration.labels import labels
from pipeline.report.calibration.measure import measure, table_schema
from pipeline.report.calibration.page import calibrate
from pipeline.report.calibration.suggestion import area_under_curve, from_floor, youden
from pipeline.report.calibration.text import text_table

LOW = Rule("similarity", "min", 0.5, "identity_low", "Too unlike.")
HIGH = Rule("extremity", "max", 0.8, "colour_extreme", "Too gaudy.")


@pytest.fixture(scope="module")
def places(small_run, tmp_path_factory):
    """(root of a copy of the run, what calibrate wrote for identity and semantics by stage)."""
    root = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(small_run[0].run.config.root, root, dirs_exist_ok=True, symlinks=True)
    return root, {stage: calibrate(small_config(root), stage) for stage in ("identity", "semantics")}


@pytest.fixture(scope="module")
def found(places):
    return {stage: measure(small_config(places[0]), stage) for stage in ("identity", "semantics")}


def figures_of(found, reason):
    return next(f for f in found.figures if f.rule.reason == reason)


# By hand


def test_area_under_curve_by_hand():
    scores, floor = np.array([0.9, 0.5, 0.2]), np.array([0.5, 0.1])
    assert area_under_curve(scores, floor, "min") == pytest.approx((2 + 1.5 + 1) / 6)
    assert area_under_curve(scores, floor, "max") == pytest.approx(1 - 4.5 / 6)
    assert area_under_curve(floor, floor, "min") == 0.5
    assert math.isnan(area_under_curve(scores, floor[:0], "min"))


def test_the_suggestion_lies_in_the_middle_of_the_widest_gap_that_separates_best():
    assert youden(np.array([0.6, 0.8]), np.array([0.1, 0.3]), "min") == 0.45
    assert youden(np.array([0.1, 0.3]), np.array([0.6, 0.8]), "max") == 0.45
    scores, floor = np.array([0.2, 0.6, 0.7, 0.8]), np.array([0.1, 0.3, 0.4, 0.65])
    # 0.5: 3/4 of the samples, 1/4 of the floor; no other place is better
    assert youden(scores, floor, "min") == 0.5


def test_what_a_threshold_would_keep_by_hand():
    """Rows that failed anywhere, miss a score or break another rule are not kept by all rules together."""
    ids = [f"s{i}" for i in range(6)]
    similarity = [0.2, 0.5, 0.6, 0.7, None, 0.9]
    frames = {
        "identity": pd.DataFrame({"sample_id": ids, "status": "ok", "similarity": similarity}),
        "semantics": pd.DataFrame({
            "sample_id": ids, "status": ["ok", "ok", "error", "ok", "ok", "ok"], "extremity": [0, 0, 0, 0.9, 0, 0.8],
        }),
    }  # fmt: skip
    floor = pd.DataFrame({"sample_id": ["s1", "s3"], "kind": "floor", "similarity": [0.1, 0.6]})
    table = pd.concat([frames["identity"][["sample_id", "similarity"]].assign(kind="run"), floor])
    known = labels({"s0": "missing", "s1": "none", "s4": "none", "s5": "jpeg"}, {})
    found = rule_figures(LOW, table, frames, [("identity", LOW), ("semantics", HIGH)], known)
    now = found.at(0.5)
    assert (now.alone, now.together, now.floor_share) == (4, 2, 0.5)  # s1, s2, s3, s5; s1, s5
    assert found.scores.to_dict() == {"s0": 0.2, "s1": 0.5, "s2": 0.6, "s3": 0.7, "s5": 0.9}
    assert found.auc == pytest.approx((5 + 2.5) / 10)
    assert (now.rates.bad, now.rates.good) == (2, 1), "s4 has no score"
    assert (now.rates.caught, now.rates.lost, now.rates.precision, now.rates.recall) == (1, 0, 1.0, 0.5)
    assert now.rates.caught_by_all == 1
    assert [(seen.kind, seen.failing, seen.failing_any) for seen in found.kinds] == [
        ("clean", 0, 0), ("jpeg", 0, 0), ("missing", 1, 1),
    ]  # fmt: skip
    strict = rule_figures(
        HIGH, table.assign(extremity=table.similarity), frames, [("identity", LOW), ("semantics", HIGH)], known
    )
    assert (strict.at(0.8).alone, strict.at(0.8).together) == (5, 2)
    with pytest.raises(UserError, match="1 samples have a similarity, at least 2 are needed"):
        rule_figures(LOW, table[table.sample_id == "s1"], frames, [("identity", LOW)], known)


def test_spread_evenly_takes_the_ends_and_never_one_twice():
    assert spread_evenly(list(range(9)), 3) == [0, 4, 8]
    assert spread_evenly(list("abc"), 7) == ["a", "b", "c"]
    assert spread_evenly(list("abc"), 0) == []


# The floor


def test_a_floor_sample_has_another_samples_references_and_its_own_pictures(small_run):
    run, pool = small_run[0].run, small_run[0].pool_digest
    plan = read_all(run, "plan").to_pylist()
    samples, _ = stage_inputs(PartJob(run, "identity", "part-00000", "", pool), Identity.reads).samples()
    for place, sample in enumerate(samples):
        wrong = wrong_sample(sample, plan, place)
        own = {sample.plan["subject_0_id"], sample.plan["subject_1_id"]}
        assert not own & {wrong.plan["subject_0_id"], wrong.plan["subject_1_id"]}
        donors = [r for r in plan if all(r[key] == wrong.plan[key] for key in WRONG)]
        assert donors, "both references come from one sample"
        for key in ("sample_id", "box_0", "box_1", "prompt", "seed"):
            assert wrong.plan[key] == sample.plan[key]
        assert wrong.files("synthesis") == sample.files("synthesis")
        assert wrong.reference(0).tobytes() != sample.reference(0).tobytes()
        assert sample.plan == plan[place], "the sample itself is as it was"
    assert wrong_sample(samples[0], [samples[0].plan] * 3, 0) is None


def test_the_floor_is_scored_by_the_stage_itself(small_run, found):
    run, pool = small_run[0].run, small_run[0].pool_digest
    table = found["identity"].table
    floor = table[table.kind == "floor"].set_index("sample_id")
    assert len(floor) == 12
    plan = {row["sample_id"]: row for row in read_all(run, "plan").to_pylist()}
    samples, _ = stage_inputs(PartJob(run, "identity", "part-00001", "", pool), Identity.reads).samples()
    stage = Identity()
    for sample in samples[:2]:
        row = floor.loc[sample.sample_id]
        assert row.reference_0_id != plan[sample.sample_id]["reference_0_id"]
        wrong = {**sample.plan, "reference_0_id": row.reference_0_id, "reference_1_id": row.reference_1_id}
        (scored,), _, _ = stage.run([replace(sample, rows={**sample.rows, "plan": wrong})], {})
        for column in ("similarity_0_0", "similarity_1_1", "similarity_min", "literal_min", "swap_margin"):
            assert row[column] == scored[column], column


def test_right_references_stand_out_from_the_floor(small_run, found):
    low = figures_of(found["identity"], "identity_low")
    manifest = pd.read_parquet(small_run[1]["manifest"]).set_index("sample_id")
    clean = low.scores[manifest.loc[low.scores.index].planted_fault == "none"]
    assert area_under_curve(clean.to_numpy(), low.floor, "min") > 0.9
    assert 0.8 < low.auc < 1, "planted faults are among the samples"
    assert np.median(low.scores) - np.median(low.floor) > 0.25
    assert low.at(low.suggested).floor_share < 0.2
    separation = found["identity"].separation()
    assert separation["similarity_min"] == pytest.approx(low.auc)
    assert separation["literal_min"] > 0.7, "the paper's own rule is measured beside it"
    assert figures_of(found["semantics"], "subject_missing").auc > 0.8


def test_where_the_floor_says_nothing_there_is_no_suggestion(found):
    colours = figures_of(found["semantics"], "colour_extreme")
    assert colours.suggested is None
    assert colours.auc < 0.7
    assert colours.note.startswith("No threshold is suggested.")
    assert "the floor cannot place it" in colours.note
    same = pd.Series([0.1, 0.4], index=["a", "b"])
    assert "leave this score as it is" in from_floor(HIGH, same, same)[1]
    copied = figures_of(found["identity"], "identity_copied")
    assert (copied.suggested, copied.at(1.0).alone) == (None, 12)
    assert copied.auc < 0.5


# What is measured and written


def test_quantiles_and_counts_are_those_of_the_run(small_run, found):
    manifest = pd.read_parquet(small_run[1]["manifest"])
    for stage in found.values():
        assert (stage.samples, stage.judged_by[0]) == (12, stage.stage.name)
        assert set(stage.judged_by) == {"matting", "semantics", "identity", "quality"}
        for figures in stage.figures:
            scores = manifest[figures.rule.column]
            for level, value in figures.quantiles().items():
                assert value == np.percentile(scores, level)
            broken = [figures.rule.reason in reasons for reasons in manifest.reasons]
            now = figures.at(figures.rule.threshold)
            assert now.alone == 12 - sum(broken)
            assert now.together == (manifest.decision == "kept").sum()
            for candidate in figures.candidates:
                passes = scores >= candidate.threshold if figures.rule.bound == "min" else scores <= candidate.threshold
                assert candidate.alone == passes.sum()


def test_the_scores_are_written_with_their_meaning(places, found):
    table = pq.read_table(places[1]["identity"]["scores"])
    stage = found["identity"].stage
    validate(table.replace_schema_metadata(), replace(table_schema(stage), key=None), "scores.parquet")
    frame = table.to_pandas()
    assert frame.kind.value_counts().to_dict() == {"run": 12, "floor": 12}
    assert table.schema.field("similarity_min").metadata[b"unit"] == b"cosine"
    known = ["label", "labelled_by", "planted_fault"]
    expected = found["identity"].table
    pd.testing.assert_frame_equal(frame.drop(columns=known), expected.drop(columns=known), check_dtype=False)
    assert frame[known].fillna("").equals(expected[known].fillna("").astype(frame.label.dtype))
    assert frame[frame.kind == "floor"].label.isna().all()


def test_the_thresholds_file_is_read_back_by_the_config(places, found):
    root, written = places
    low = figures_of(found["identity"], "identity_low")
    values = read_thresholds(written["identity"]["thresholds"])
    assert values["identity_low"] == low.suggested
    assert values["identity_copied"] == 1.0
    text = open(written["identity"]["thresholds"]).read()
    kept = low.at(low.suggested)
    assert f"keeps {kept.alone} of 12 alone, {kept.together} with all rules" in text
    decide = {"thresholds_file": written["identity"]["thresholds"]}
    again = measure(small_config(root, decide=decide), "identity", floor_samples=0)
    assert {f.rule.reason: f.rule.threshold for f in again.figures} == values
    both = calibrate(small_config(root, decide=decide), "semantics", floor_samples=4)
    assert values.items() <= read_thresholds(both["thresholds"]).items(), "the other stage's are not lost"


def test_decisions_follow_the_thresholds_file(copied):
    places = calibrate(small_config(copied), "identity", floor_samples=4)
    with open(places["thresholds"], "w") as file:
        file.write("thresholds: {identity_low: 1.0}\n")
    result = curate(small_config(copied, decide={"thresholds_file": places["thresholds"]}))
    assert set(pd.read_parquet(result.manifest_url).decision) == {"rejected"}


def test_the_page_is_whole_in_itself_and_names_planted_faults(small_run, places, found):
    manifest = pd.read_parquet(small_run[1]["manifest"])
    faults = manifest[manifest.planted_fault != "none"].planted_fault
    for stage, written in places[1].items():
        with open(written["calibration"]) as file:
            page = file.read()
        assert not re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,|#)[^"]*"', page)
        assert "<script" not in page
        assert page.count("<svg") == 3 * len(found[stage].figures), "histogram, kinds, rates"
        for fault in faults.unique():
            assert page.count(f"planted: {fault}<") == (faults == fault).sum() * len(found[stage].figures)
        assert page.count("<figure") == 12 * len(found[stage].figures), "every sample is on each board"
        for figures in found[stage].figures:
            assert f'id="{figures.rule.reason}"' in page
        first = page[page.index('class="board"') :]
        shown = [float(text) for text in re.findall(r"<figcaption><b>([-\d.]+)<", first[: first.index("</section>")])]
        assert shown == [round(s, 3) for s in sorted(found[stage].figures[0].scores)]


def test_the_table_for_the_terminal_marks_what_is_in_force(found):
    lines = text_table(found["identity"]).splitlines()
    assert lines[0] == "identity: 12 samples, floor of 12, 2 bad and 10 good labels, 12 from planting"
    now = [line for line in lines if line.endswith(("now", "now, suggested"))]
    assert len(now) == 3
    assert re.match(r" +>= +0\.4 ", now[0])


@pytest.mark.slow
def test_calibrating_changes_nothing_of_the_run_and_gives_the_same_bytes_twice(copied):
    def digests():
        files = (p for p in copied.rglob("*") if p.is_file())
        return {str(p.relative_to(copied)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    before = digests()
    calibrate(small_config(copied), "semantics", floor_samples=4)
    once = digests()
    calibrate(small_config(copied), "semantics", floor_samples=4)
    assert digests() == once
    added = {f"small/calibration/semantics/{n}" for n in ("index.html", "scores.parquet", "thresholds.yaml")}
    assert once.keys() - before.keys() == added
    assert {name: once[name] for name in before} == before


def test_a_run_that_is_not_finished_is_measured_as_far_as_it_is(copied):
    (part,) = copied.glob("small/identity/*/part-00002.parquet")
    os.remove(part)
    found = measure(small_config(copied), "identity", floor_samples=4)
    assert (found.samples, found.floor_samples) == (8, 4)
    semantics = measure(small_config(copied), "semantics", floor_samples=0)
    assert (semantics.samples, semantics.judged_by) == (12, ["semantics", "matting", "quality"])
    assert semantics.figures[0].note.endswith("There is no floor to compare with.")
    assert semantics.figures[0].suggested is None


def test_a_run_that_is_being_grown_is_measured_where_its_parts_are_of_its_plan(tmp_path):
    both = {"filters": [{"use": f"troubled.stages:{name}", "config": {}} for name in ("Scored", "Trouble")]}
    curate(config(tmp_path, samples=9, **both))
    grown = config(tmp_path, **both)
    run = stopped_before("trouble", grown)
    scored, trouble = (measure(grown, stage, floor_samples=4) for stage in ("scored", "trouble"))
    assert (scored.samples, scored.judged_by) == (12, ["scored"]), "trouble has one sample of the last part"
    assert (trouble.samples, trouble.judged_by) == (8, ["trouble", "scored"])

    curate(grown)
    path = run.store("trouble").path("part-00001", "parquet")  # as if another sample had stood in the plan
    table = pq.read_table(path)
    ids = ["other", *table["sample_id"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(ids)), path)
    assert measure(grown, "trouble", floor_samples=0).samples == 8
    assert measure(grown, "scored", floor_samples=0).judged_by == ["scored"]


def test_what_cannot_be_calibrated_is_said_in_one_line(copied, tmp_path_factory):
    with pytest.raises(UserError, match=r"stage identity has no finished part; run the curation first"):
        calibrate(small_config(tmp_path_factory.mktemp("empty")), "identity")
    for stage in ("synthesis", "identiy"):
        with pytest.raises(UserError, match=rf"calibrate {stage}: no stage with rules.*matting, semantics, identity"):
            calibrate(small_config(copied), stage)
