"""Agreement between people, and of people with filters."""

import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score
from small.curation import small_config
from troubled.runs import config, stopped_before

from pipeline.curate import curate
from pipeline.jobs import read_all
from pipeline.report.results import read_manifest, write_results
from pipeline.review.agreement import agreement, filters, interval, kappa
from pipeline.review.log import ReviewLog
from pipeline.review.opinions import opinions, verdicts


def test_kappa_is_scikit_learns_and_its_interval_is_the_bootstraps():
    chance = np.random.default_rng(3)
    one = chance.random(200) < 0.6
    other = one ^ (chance.random(200) < 0.2)
    assert kappa(one, other) == cohen_kappa_score(one, other)
    rows = chance.integers(0, 200, (2000, 200))
    drawn = [cohen_kappa_score(one[row], other[row]) for row in rows]
    assert interval(one, other) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
    assert interval(one, other) == interval(one, other)


def test_who_always_says_the_same_agrees_by_chance_alone():
    assert np.isnan(kappa([True] * 5, [True] * 5))
    assert np.isnan(interval([True] * 5, [True] * 5)).all()
    assert kappa([True, True, False, True], [True] * 4) == 0


def judged(log, reviewer, labels):
    for sample_id, keep in labels.items():
        log.append({"id": str(uuid.uuid4()), "sample_id": sample_id, "action": "verdict", "reviewer": reviewer,
                    "value": "kept" if keep else "rejected"})  # fmt: skip


def test_people_are_compared_with_each_other_and_with_what_the_filters_alone_say(copied, small_run):
    run = small_run[0].run.__class__.of(small_run[0].run.config.model_copy(update={"root": str(copied)}))
    assert agreement(run) == []
    manifest = read_manifest(small_run[0])
    decided = {i: d == "kept" for i, d in zip(manifest.sample_id, manifest.decision, strict=True)}
    log = ReviewLog(run.config.run_url)
    judged(log, "ada", decided)
    judged(log, "bob", {i: not keep for i, keep in list(decided.items())[:5]})
    rows = {(row["who"], row["with"]): row for row in agreement(run)}
    assert rows["ada", "bob"]["samples"] == 5
    assert rows["ada", "bob"]["kappa"] < 0
    assert rows["people", "all filters"]["samples"] == len(decided)
    assert rows["people", "all filters"]["kappa"] < 1, "bob's verdicts came last"
    assert {"judge", "identity filter"} <= {other for _, other in rows}
    assert filters(run, decided)["all filters"] == decided


def test_samples_of_a_part_that_is_not_of_the_plan_are_not_compared(tmp_path):
    both = {"filters": [{"use": f"troubled.stages:{name}", "config": {}} for name in ("Scored", "Trouble")]}
    run = curate(config(tmp_path, samples=9, **both)).run
    judged(ReviewLog(run.config.run_url), "ada", dict.fromkeys(read_all(run, "plan")["sample_id"].to_pylist(), True))
    before = filters(run, verdicts(opinions(ReviewLog(run.config.run_url).rows()))["ada"])["all filters"]
    assert len(before) == 9
    run = stopped_before("trouble", config(tmp_path, **both))
    ids = read_all(run, "plan")["sample_id"].to_pylist()
    found = filters(run, dict.fromkeys(ids))["all filters"]
    assert found == {i: before[i] for i in ids[:8]}, "of the last part one stage has one sample, the other four"

    path = run.store("scored").path("part-00000", "parquet")  # as if another sample had stood in the plan
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(["other", *ids[1:4]])), path)
    assert filters(run, dict.fromkeys(ids))["all filters"] == {i: before[i] for i in ids[4:8]}


@pytest.mark.slow
def test_the_report_tells_it_once_there_are_verdicts(copied, small_run):
    assert '<section id="agreement">' not in Path(small_run[1]["report"]).read_text()
    log = ReviewLog(str(copied / "small"))
    ids = list(read_manifest(small_run[0]).sample_id)
    for n, reviewer in enumerate(("ada", "<b>bob</b>")):
        judged(log, reviewer, {i: (k + n) % 3 > 0 for k, i in enumerate(ids)})
    places = write_results(curate(small_config(copied)))
    (told,) = [r for r in json.loads(Path(places["metrics"]).read_text())["agreement"] if r["who"] != "people"]
    assert (told["who"], told["with"], told["samples"]) == ("<b>bob</b>", "ada", len(ids))
    assert told["low"] <= told["kappa"] <= told["high"]
    page = Path(places["report"]).read_text()
    assert '<section id="agreement">' in page
    assert "&lt;b&gt;bob&lt;/b&gt;" in page
    assert "<b>bob</b>" not in page
