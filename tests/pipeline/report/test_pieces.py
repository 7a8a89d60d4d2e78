"""What the page is made of: charts, thumbnails, numbers, reasons, and a choice that shows every group."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from PIL import Image

from pipeline.report import charts
from pipeline.report.page.cards import spread
from pipeline.report.text import number_text, reasons_of
from pipeline.report.thumbnails import data_uri


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_a_picture_of_any_mode_becomes_a_thumbnail(mode: str) -> None:
    assert data_uri(Image.new(mode, (300, 7)), 64).startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (3.0, "3.00"),
        (99.96, "100"),
        (12.345, "12.3"),
        (1234567.0, "1,234,567"),
        (math.nan, "–"),
        (9.2e-5, "<0.0001"),
    ],
)
def test_numbers_as_text(value: float, text: str) -> None:
    assert charts.number(value) == text
    assert number_text(value) == text
    assert number_text(3) == "3"


def test_a_histogram_holds_with_one_value_and_with_none() -> None:
    one = charts.histogram([0.5, math.inf], [], [("min", 0.5)], "one")
    assert one is not None
    assert "≥ 0.5" in one
    assert charts.histogram([math.nan], [], [("min", 0.5)], "none") is None


def test_no_bin_straddles_the_threshold() -> None:
    svg = charts.histogram([0.451, 0.9], [0.449, 0.1], [("min", 0.45)], "edges")
    assert svg is not None
    line = re.search(r'd="M ([\d.]+) [\d.]+ L \1 [\d.]+ "[^>]*stroke-dasharray', svg)
    assert line is not None
    bars = re.findall(r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [^"]*"[^>]*style="fill: var\(--(kept|rejected)\)"', svg)
    assert len(bars) == 4
    for left, right, colour in bars:
        beyond = float(left) >= float(line[1]) - 0.01 if colour == "kept" else float(right) <= float(line[1]) + 0.01
        assert beyond, (left, right, colour)


def test_a_long_log_is_thinned() -> None:
    points = [(float(k), 5.0 - k / 10000) for k in range(20000)]
    svg = charts.training_curve(points, points, None, "long")
    assert svg is not None
    assert len(svg) < 100_000


def test_spread_sees_every_group_before_it_repeats_one() -> None:
    groups = [["a"]] * 10 + [["b", "c"], ["c"], ["d"]]
    assert {name for place in spread(groups, 4) for name in groups[place]} == {"a", "b", "c", "d"}
    assert spread(groups, 100) == list(range(13))
    assert spread([], 5) == []


@pytest.mark.parametrize(("value", "expected"), [(None, []), (math.nan, []), ([], []), (["x", "y"], ["x", "y"])])
def test_reasons_of_any_spelling_of_nothing(value: Any, expected: list[str]) -> None:
    assert reasons_of({"reasons": value}) == expected
