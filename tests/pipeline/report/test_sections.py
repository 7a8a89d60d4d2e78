"""The report's sections on thresholds, coverage, duplicates, agreement and an earlier run, by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import run_here
from PIL import Image
from small.curation import small_config
from small.datasets import row as dataset_row
from small.datasets import write_dataset

from pipeline import cli
from pipeline.curate import curate
from pipeline.report.data import ReportData, RuleLine
from pipeline.report.page.against import against_view, compare
from pipeline.report.page.copies import copies_view, near_groups
from pipeline.report.page.coverage import CATEGORIES_SHOWN, coverage_view
from pipeline.report.page.nearest import edge_views, nearest
from pipeline.report.page.render import render
from pipeline.report.results import write_results

SCORE = RuleLine("score", "min", 0.5, "identity_low", "Too unlike.", "identity")


def data(manifest: pd.DataFrame, **changes: Any) -> ReportData:
    picture = Image.new("RGB", (8, 8), "red")
    return replace(ReportData("run", manifest, [SCORE], {}, lambda i, n: picture, {}, None), **changes)


def frame(**columns: Any) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    blank = {"decision": "kept", "planted_fault": "none", "relation": "hug", "reasons": []}
    ids = {"sample_id": [f"s{k}" for k in range(count)]}
    return pd.DataFrame(ids | {name: [value] * count for name, value in blank.items()} | columns)


def test_the_samples_nearest_to_a_threshold_come_from_both_sides():
    scores = [0.1, 0.49, 0.4, 0.3, 0.5, 0.9, 0.55, np.nan, 0.7]
    (edge,) = edge_views(data(frame(score=scores)))
    assert [figure["title"] for figure in edge["failing"]] == ["0.490", "0.400", "0.300"]
    assert [figure["title"] for figure in edge["passing"]] == ["0.500", "0.550", "0.700"]
    assert [figure["lines"][0] for figure in edge["passing"]][:2] == ["on it", "0.0500 above"]
    assert edge["failing"][0]["lines"] == ["0.0100 below", "kept"]
    assert edge_views(data(frame(other=[1.0])))[0]["passing"] == [], "a score that the manifest lacks"
    assert nearest(np.array([0.4, 0.6, 0.6]), 0.5, np.array([False, True, True])) == [1, 2]


def counts(cells: list[dict | None]) -> list[tuple[int, int] | None]:
    return [cell and (cell["kept"], cell["planned"]) for cell in cells]


def test_coverage_counts_kept_of_planned_by_category_and_relation():
    found = coverage_view(frame(
        relation=["hug", "hug", "ride"], decision=["kept", "rejected", "rejected"],
        reference_0_category=["cat", "cat", "cat"], reference_1_category=["dog", "cat", "cup"],
    ))  # fmt: skip
    assert found["relations"] == ["hug", "ride"]
    rows = {
        row["category"]: [cell and (cell["kept"], cell["planned"]) for cell in row["cells"]] for row in found["rows"]
    }
    assert rows == {"cat": [(1, 2), (0, 1)], "cup": [None, (0, 1)], "dog": [(1, 1), None]}
    assert [(cell["kept"], cell["planned"]) for cell in [*found["totals"], found["all"]]] == [(1, 2), (0, 1), (1, 3)]
    assert (found["never"], found["lost"], found["more"]) == (2, 2, 0)
    names = [f"c{k:03d}" for k in range(CATEGORIES_SHOWN + 5)]
    many = coverage_view(frame(reference_0_category=names, reference_1_category=names))
    assert (len(many["rows"]), many["more"]) == (CATEGORIES_SHOWN, 5)


def reference(name: str, features: list[float], **changes: Any) -> dict[str, Any]:
    marks = {"phash": "0" * 64, "colours": bytes(192), "features": np.array(features, np.float16).tobytes()}
    row = {"reference_id": name, "status": "ok", "name": name, "category": "cat", "source": f"{name}.png"}
    return row | marks | changes


def test_near_copies_are_shown_in_groups_and_equal_pictures_are_told():
    rows = [reference(n, [1, 0, 0]) for n in ("one", "two", "three")]
    rows += [reference(n, [0, 1, 0], phash="f" * 64) for n in ("four", "five")]
    rows += [reference("six", [0, 0, 1], phash="f0" * 32)]
    rows += [{"reference_id": "x", "status": "error", "error_code": "duplicate", "error_message": "b.png: as a.png"}]
    assert [[row["name"] for row in group] for group in near_groups(rows[:6])] == [
        ["one", "two", "three"],
        ["four", "five"],
    ]
    seen: list[str] = []
    found = copies_view(data(frame(score=[1.0]), references=rows, reference=lambda i: seen.append(i)))
    assert (found["count"], found["copies"], found["pictures"], found["equal"]) == (2, 5, 6, ["b.png: as a.png"])
    assert seen == ["one", "two", "three", "four", "five"]
    page = render(data(frame(score=[1.0]), references=rows))
    assert "Groups of near-copies" in page
    assert "b.png: as a.png" in page


def test_a_pool_too_large_to_compare_is_said_to_be(monkeypatch):
    monkeypatch.setattr("pipeline.report.page.copies.MOST_COMPARED", 1)
    page = render(data(frame(score=[1.0]), references=[reference("a", [1, 0]), reference("b", [1, 0])]))
    assert "The pool has more than 1 pictures" in page
    assert "Groups of near-copies" not in page


def test_agreement_is_shown_where_it_is_known():
    rows = [{"who": "ann <b>", "with": "the judge", "samples": 40, "kappa": 0.61, "low": 0.41, "high": 0.79},
            {"who": "ann", "with": "bob", "samples": 2, "kappa": None, "low": None, "high": None}]  # fmt: skip
    page = render(data(frame(score=[1.0]), agreement=rows))
    assert "ann &lt;b&gt;" in page
    assert "0.410 to 0.790" in page
    assert "– to –" in page
    assert 'id="agreement"' not in render(data(frame(score=[1.0])))


def test_marks_that_turn_the_writing_are_taken_out_of_names_and_settings():
    hostile = "a\u202egnp.exe\u0007\u2066"
    rows = [{"who": hostile, "with": hostile, "samples": 1, "kappa": 1.0, "low": 1.0, "high": 1.0}]
    categories = {f"reference_{i}_{what}": [hostile] for i in range(2) for what in ("category", "name")}
    manifest = frame(score=[1.0], prompt=[hostile], **categories)
    page = render(data(manifest, name=hostile, agreement=rows, config={"name": hostile, "nested": {"a": 1}}))
    assert not any(mark in page for mark in "\u202e\u0007\u2066")
    assert "gnp.exe" in page
    assert "nested:\n  a: 1" in page, "the settings keep their lines"


# An earlier run


def test_what_entered_and_left_by_hand(tmp_path):
    rows = [dataset_row(k, shard=0 if k < 4 else None) for k in range(6)]
    for row in rows[4:]:
        row["reasons"] = ["identity_low"]
    changed = [dict(row) for row in rows[1:]] + [dataset_row(9)]
    changed[0] |= {"decision": "rejected", "shard": None, "content": None, "reasons": ["jpeg_blocks", "identity_low"]}
    changed[3] |= {"decision": "kept", "shard": "train-00000.tar", "content": "c4", "reasons": []}
    old, new = (write_dataset(tmp_path / name, own) for name, own in (("old", rows), ("new", changed)))
    against = compare(str(old), str(new))
    found = against_view(data(pd.DataFrame(changed), against=against))
    assert (found["common"], found["added"], found["dropped"]) == (5, 1, 1)
    assert (found["entered"]["count"], found["left"]["count"]) == (1, 1)
    assert found["left"]["shown"][0]["lines"] == ["jpeg_blocks, identity_low"]
    assert found["entered"]["shown"][0]["lines"] == ["identity_low"]
    assert {row["reason"]: (row["entered"], row["left"]) for row in found["reasons"]} == {
        "identity_low": (1, 1), "jpeg_blocks": (0, 1),
    }  # fmt: skip
    funnel = {row["label"]: (row["before"], row["now"], row["change"]) for row in found["funnel"]}
    assert funnel["planned"] == (6, 6, "–")
    assert funnel["kept"] == (4, 4, "–")
    assert funnel["jpeg_blocks"] == (0, 1, "+1")


@pytest.mark.slow
def test_a_run_is_compared_with_an_earlier_one_by_the_command(copied, tmp_path_factory):
    shutil.copytree(copied / "small", copied / "strict", symlinks=True)
    strict = small_config(copied, name="strict", decide={"thresholds": {"identity_low": 0.9}})
    write_results(curate(strict))
    options = ("--root", copied, "--name", "strict")
    done = run_here(cli.main, "instructar", "report", *options, "--against", copied / "small")
    assert done.returncode == 0, done.stderr
    page = open(done.stdout.strip()).read()
    section = page[page.index('<section id="against">') : page.index('<section id="filters">')]
    before, after = (json.loads((copied / name / "metrics.json").read_text()) for name in ("small", "strict"))
    kept = [found["funnel"]["kept"] for found in (before, after)]
    assert kept[1] < kept[0]
    assert f'<th>kept</th><td class="num">{kept[0]}</td><td class="num">{kept[1]}</td>' in section
    assert "≥ 0.9" in section
    assert "identity_low" in section
    assert section.count("<figure") == min(6, kept[0] - kept[1])
    again = run_here(cli.main, "instructar", "report", *options, "--against", copied / "small")
    assert open(again.stdout.strip()).read() == page, "the same input, the same bytes"
    plain = run_here(cli.main, "instructar", "report", *options)
    assert 'id="against"' not in open(plain.stdout.strip()).read()


def test_comparing_with_nothing_is_said_in_one_line(copied):
    done = run_here(cli.main, "instructar", "report", "--root", copied, "--name", "small", "--against", copied / "gone")
    assert done.returncode != 0
    assert "gone: no dataset is there" in done.stderr
    assert "Traceback" not in done.stderr
