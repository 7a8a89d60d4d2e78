"""The report: what it must show, that it is whole in itself, and that it holds with things missing."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from PIL import Image

from pipeline.report.data import ReportData, RuleLine, Training, rules_by_column
from pipeline.report.page.cards import REJECTED_SHOWN
from pipeline.report.page.render import render, write_report

RULES = [
    RuleLine("matte_confidence", "min", 0.62, "matte_unsure", "The matte is sharp.", "matting"),
    RuleLine("foreground_share", "min", 0.08, "foreground_small", "The subjects fill enough.", "matting"),
    RuleLine("foreground_share", "max", 0.853, "foreground_large", "Some background is left.", "matting"),
    RuleLine("similarity_min", "min", 0.4567, "identity_low", "Subjects resemble references.", "identity"),
]
GOOD = {"matte_confidence": 0.9, "foreground_share": 0.4, "similarity_min": 0.8}
HOSTILE = "<script>alert('x')</script> & \"quoted\""


def sample(index: int, decision: str, reasons: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    row = {
        "sample_id": f"s{index:04d}",
        "index": index,
        "split": "test" if index % 5 == 0 else "train",
        "relation": ("next_to", "behind", "holding")[index % 3],
        "prompt": f"a cat next to a cup, number {index}",
        "reference_0_name": "cat",
        "reference_0_category": "animal",
        "reference_1_name": "cup",
        "reference_1_category": "object",
        "decision": decision,
        "reasons": reasons or [],
        "error_stage": None,
        "error_code": None,
        "error_message": None,
        "shard": None,
        "planted_fault": "none",
    }
    return {**row, **GOOD, **changes}


def manifest() -> pd.DataFrame:
    rows = [sample(k, "kept") for k in range(20)]
    rows += [sample(k, "rejected", ["identity_low"], similarity_min=0.2) for k in range(20, 60)]
    rows += [
        sample(60, "rejected", ["identity_low"], similarity_min=0.1, planted_fault="swapped"),
        sample(61, "rejected", ["matte_unsure", "foreground_large"], matte_confidence=0.3, foreground_share=0.9),
        sample(62, "rejected", ["foreground_small"], foreground_share=0.01, similarity_min=math.nan),
        sample(63, "undecided", ["score_missing"], similarity_min=math.nan),
        sample(64, "error", error_stage="matting", error_code="empty_matte", error_message=HOSTILE)
        | dict.fromkeys(GOOD, math.nan)
        | {"planted_fault": None},
    ]
    rows[0]["prompt"] = HOSTILE
    return pd.DataFrame(rows)


def picture(sample_id: str, name: str) -> Image.Image | None:
    shade = (int(sample_id[1:]) * 37 % 256, 90, len(name) * 9)
    return Image.new("RGBA", (40, 30), (*shade, 120)) if name == "foreground" else Image.new("RGB", (40, 30), shade)


METRICS: dict[str, Any] = {
    "funnel": {
        "planned": 1065,
        "made": 1064,
        "errors": 11,
        "undecided": 7,
        "rejected": 43,
        "kept": 1004,
        "rejected_by_reason": {"identity_low": 41, "matte_unsure": 1, "foreground_large": 1, "foreground_small": 1},
    },
    "splits": {"train": 903, "test": 101},
    "planted": {
        "planted": 8,
        "caught": 6,
        "recall": 0.75,
        "precision": 0.6667,
        "clean": 57,
        "clean_kept_share": 0.947,
        "recall_interval": [0.4093, 0.9285],
        "by_fault": {
            "swapped": {"planted": 5, "caught": 5},
            "missing": {"planted": 3, "caught": 1, "recall_interval": [0.0615, 0.7923], "reasons": {"identity_low": 1}},
        },
    },
    "stages": {
        "matting": {"seconds": 211.7, "parts": 5, "cached_parts": 2},
        "identity": {"seconds": 0.5, "parts": 5, "cached_parts": 5},
    },
}

TRAINING = Training(
    log=[
        {"step": 0, "loss": 5.5, "samples_per_s": 10.0, "unigram_entropy": 4.11, "val_unigram_cross_entropy": 4.21},
        {"step": 1, "loss": 4.0, "samples_per_s": 40.0},
        {"step": 2, "loss": math.nan, "samples_per_s": 41.0},
        {"step": 2, "val_loss": 3.75, "val_loss_target": 3.87},
    ],
    evaluation={"psnr": 14.82, "count": 18, "nested": {"hidden_number": 1}, "flag_value": True},
    samples=[("s0000", Image.new("RGB", (16, 16), "red")), ("unknown", Image.new("L", (16, 16)))],
)

DATA = ReportData("demo-run", manifest(), RULES, METRICS, picture, {"seed": 7, "where": Path("a/b")}, TRAINING)

EMPTY = ReportData(
    name="empty-run",
    manifest=manifest().iloc[:0],
    rules=[],
    metrics={
        "funnel": dict.fromkeys(("planned", "made", "errors", "undecided", "rejected", "kept"), 0)
        | {"rejected_by_reason": {}},
        "splits": {},
        "planted": None,
        "stages": {},
    },
    picture=picture,
    config={},
    training=None,
)


@pytest.fixture(scope="module")
def page() -> str:
    return render(DATA)


class Page(HTMLParser):
    """Collects what a browser would fetch or run, the ids, and the text of each section."""

    VOID = ("meta", "img", "hr", "link", "br", "input")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.section = values.get("id") or "" if tag == "section" else self.section
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.sections[self.section] = self.sections.get(self.section, "") + data


def test_every_tag_is_closed(page: str) -> None:
    assert Page(page).open == []


def test_the_funnel_shows_its_numbers_and_every_reason_with_its_meaning(page: str) -> None:
    funnel = Page(page).sections["funnel"]
    for number in ("1,065", "1,064", "1,004", "43", "11", "7"):
        assert re.search(rf"(?<![\d,.]){number}(?![\d,.])", funnel), number
    for rule in RULES:
        assert rule.reason in funnel
        assert rule.meaning in funnel
    assert "94 %" in funnel  # 1004 of 1065


def test_the_filters_section_shows_recall_by_fault(page: str) -> None:
    filters = Page(page).sections["filters"]
    for text in ("75 %", "(41 % to 93 %)", "67 %", "95 %", "swapped", "100 %", "missing", "33 %", "(6 % to 79 %)"):
        assert text in filters


def test_each_scored_column_has_one_chart_with_its_thresholds(page: str) -> None:
    scores = Page(page).sections["scores"]
    assert page.count("Histogram of") == len(rules_by_column(RULES)) == 3
    for text in ("≥ 0.62", "≥ 0.08", "≤ 0.853", "≥ 0.4567"):
        assert text in scores


def test_the_rejected_gallery_shows_every_reason_and_labels_planted_faults(page: str) -> None:
    rejected = Page(page).sections["rejected"]
    for rule in RULES:
        assert rule.reason in rejected
    assert "planted: swapped" in rejected
    assert "planted: none" not in rejected
    assert len(re.findall(r"\bs00\d\d\b", rejected)) == REJECTED_SHOWN


def test_the_kept_gallery_shows_sixteen_with_pictures_and_scores(page: str) -> None:
    kept = Page(page).sections["kept"]
    assert len(re.findall(r"\bs00\d\d\b", kept)) == 16
    assert "16 of 1,004" in kept
    assert "similarity_min 0.800" in kept


def test_a_score_is_coloured_by_all_thresholds_of_its_column(page: str) -> None:
    card = re.search(r"foreground_large</span>.*?</article>", page, re.DOTALL)
    assert card is not None
    assert re.search(r'<li class="fail"[^>]*>foreground_share <b>0.900', card[0])
    assert re.search(r'<li class="fail"[^>]*>matte_confidence <b>0.300', card[0])
    assert re.search(r'<li class="pass"[^>]*>similarity_min <b>0.800', card[0])
    assert re.search(r'<li class="unknown"[^>]*>similarity_min <b>–', page)


def test_errors_are_listed_with_stage_code_and_message(page: str) -> None:
    errors = Page(page).sections["errors"]
    for text in ("s0064", "matting", "empty_matte", HOSTILE):
        assert text in errors


def test_many_errors_are_cut_and_counted() -> None:
    rows = [sample(k, "error", error_stage="matting", error_code="x", error_message="m") for k in range(60)]
    page = render(replace(DATA, manifest=pd.DataFrame(rows), training=None))
    assert "and 10 more in the manifest" in page


def test_text_is_escaped(page: str) -> None:
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "&lt;script&gt;alert" in page
    assert HOSTILE in parsed.sections["kept"]  # the prompt of the first kept sample, as text


def test_hostile_names_stay_text() -> None:
    rules = [RuleLine('"><b id=x>', "min", 0.5, HOSTILE, HOSTILE, HOSTILE)]
    frame = pd.DataFrame([sample(1, "kept", reference_0_name=HOSTILE) | {'"><b id=x>': 0.7}])
    page = render(replace(DATA, name=HOSTILE, manifest=frame, rules=rules, config={HOSTILE: HOSTILE}))
    assert "Histogram of" in page
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "x" not in parsed.ids
    assert parsed.open == []


def test_nothing_is_fetched_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    assert parsed.links
    assert all(link.startswith(("data:image/", "#")) for link in parsed.links)
    assert not {"link", "script", "iframe", "object"} & set(parsed.tags)
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"url\((?!#)|@import", page)


def test_ids_are_unique_and_every_reference_within_the_page_resolves(page: str) -> None:
    ids = Page(page).ids
    assert len(ids) == len(set(ids))
    targets = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)
    assert {a or b for a, b in targets} <= set(ids)


def test_the_same_input_gives_the_same_bytes(page: str) -> None:
    assert render(replace(DATA, manifest=manifest())) == page


def test_training_shows_curve_evaluation_and_generated_pictures(page: str) -> None:
    training = Page(page).sections["training"]
    figures = (
        "guessing by token frequency 4.21",
        "3.75",
        "with the reference copies",
        "3.87",
        "psnr",
        "14.8",
        "count",
        "18",
    )
    for text in (*figures, "generated", "unknown"):
        assert text in training
    assert "hidden_number" not in training
    assert "flag_value" not in training
    assert page.count('alt="generated"') == 2


def test_training_that_has_just_begun_reads_well() -> None:
    training = Page(render(replace(DATA, training=Training([], {}, [])))).sections["training"]
    for text in ("no loss yet", "Not evaluated yet", "No picture has been sampled"):
        assert text in training


def test_empty_states() -> None:
    page = render(EMPTY)
    for text in (
        "No sample was kept",
        "No sample was rejected",
        "No stage failed on any sample",
        "No model has been trained",
        "No faults were planted",
        "no rule that rejects",
        "No timings were recorded",
    ):
        assert text in page
    assert "nan" not in " ".join(Page(page).sections.values()).lower()


def test_a_picture_that_was_never_made_is_said_to_be_absent() -> None:
    page = render(replace(DATA, picture=lambda sample_id, name: None))
    assert "data:image" in page  # the two generated pictures
    said = {name: text.count("not made") for name, text in Page(page).sections.items()}
    assert (said["kept"], said["rejected"]) == (16 * 5, REJECTED_SHOWN * 5)
    assert said["training"] == 4, "those of the one generated sample that is of this run"
    assert said["edges"] == page.count("<figcaption><b>") * 3 > 0


def test_a_score_that_no_sample_has() -> None:
    rules = [*RULES, RuleLine("faces_matched", "min", 1.0, "face_lost", "A face is found again.", "identity")]
    assert "No sample has this score" in render(replace(DATA, rules=rules))


def test_write_report_writes_the_page_and_leaves_no_other_file(tmp_path: Path, page: str) -> None:
    path = str(tmp_path / "new" / "report.html")
    assert write_report(DATA, path) == path
    assert Path(path).read_bytes() == page.encode()
    assert [file.name for file in Path(path).parent.iterdir()] == ["report.html"]


def test_write_report_takes_an_fsspec_url() -> None:
    url = "memory://report-test/page.html"
    write_report(EMPTY, url)
    with fsspec.open(url, "rb") as file:
        assert file.read().startswith(b"<!doctype html>")
