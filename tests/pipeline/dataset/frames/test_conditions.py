"""Conditions as people type them: exact rows, and one line for what cannot be meant."""

import pytest
from small.datasets import row, write_dataset

from data_schemas.errors import UserError
from pipeline.dataset.frames.columns import DatasetColumns
from pipeline.dataset.frames.conditions import parse
from pipeline.dataset.frames.frame import Frame
from pipeline.dataset.opened import open_dataset

BIG = 2**60 + 1


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    rows = [
        row(0, relation="riding", similarity_min=0.5, prompt="A Red cat.", seed=BIG, mirror_0=True),
        row(1, shard=None, relation="beside", similarity_min=0.25, reasons=["identity_low"], decision="rejected"),
        row(
            2,
            shard=None,
            similarity_min=None,
            reasons=["identity_low", "jpeg_blocks"],
            decision="rejected",
            seed=BIG + 1,
        ),
        row(3, relation="100% of, it", front=1, prompt="a (red) dog"),
    ]
    folder = write_dataset(tmp_path_factory.mktemp("data") / "set", rows)
    return Frame.of(DatasetColumns(open_dataset(folder)), lambda *_: None)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("similarity_min < 0.5", [1]),
        ("similarity_min <= 0.5", [0, 1]),
        ("similarity_min>0.5", [3]),
        ("similarity_min = 0.5", [0]),
        ("similarity_min == .5", [0]),
        ("similarity_min != 0.5", [1, 2, 3]),
        ("similarity_min is missing", [2]),
        ("similarity_min is there", [0, 1, 3]),
        ("similarity_min IN 0.25, 0.8", [1, 3]),
        ("index >= 1.5", [2, 3]),
        ("index in 0,3", [0, 3]),
        (f"seed = {BIG}", [0]),
        ("front = 1", [3]),
        ("front != 1", [0, 1, 2]),
        ("mirror_0 = yes", [0]),
        ("mirror_0 = False", [1, 2, 3]),
        ("relation = riding", [0]),
        ("relation in riding , beside", [0, 1]),
        ("relation = 100% of, it", [3]),
        ("prompt contains RED", [0, 3]),
        ("prompt contains (red)", [3]),
        ("prompt contains .", [0]),
        ("reasons contains low", [1, 2]),
        ("reasons = jpeg_blocks", [2]),
        ("reasons != jpeg_blocks", [0, 1, 3]),
        ("reasons in jpeg_blocks, other", [2]),
        ("reasons is missing", [0, 3]),
        ("reasons is there", [1, 2]),
        ("decision > l", [1, 2]),
    ],
)
def test_which_samples_meet_it(frame, condition, rows):
    assert frame.where(condition).rows.tolist() == rows


def test_conditions_are_joined_by_and_and_the_order_stays(frame):
    assert frame.sorted_by("similarity_min").rows.tolist() == [1, 0, 3, 2], "a missing score comes last"
    assert frame.sorted_by("similarity_min", descending=True).rows.tolist() == [3, 0, 1, 2]
    chosen = frame.sorted_by("similarity_min").where("decision = rejected").where("reasons = identity_low", "index < 9")
    assert chosen.ids == ["s01", "s02"]
    assert repr(chosen) == "2 of 4 samples where decision = rejected and reasons = identity_low and index < 9"


@pytest.mark.parametrize(
    ("condition", "line"),
    [
        ("", r"condition '': write a column, one of =, "),
        ("similarity_min", r"condition 'similarity_min': write a column"),
        ("similarity_min <", r"'<' lacks a value"),
        ("similarity_min is missing 3", r"'is missing' takes no value"),
        ("similarity_mni < 1", r"column 'similarity_mni': no such column; did you mean similarity_min\?"),
        ("similarity_min < high", r"similarity_min < high: 'high' is not a number"),
        ("similarity_min < nan", r"'nan' is not a number"),
        ("similarity_min in 0.1, x", r"'x' is not a number"),
        ("mirror_0 = perhaps", r"'perhaps' is neither yes nor no"),
        ("x" * 2000 + " = 1", r"write a column"),
        ("decision; DROP = 1", r"write a column"),
    ],
)
def test_what_cannot_be_meant_is_one_line(frame, condition, line):
    with pytest.raises(UserError, match=line) as told:
        frame.where(condition)
    assert "\n" not in str(told.value)


def test_an_order_that_is_none_is_one_line(frame):
    with pytest.raises(UserError, match=r"column 'reasons' holds list.*sort by another"):
        frame.sorted_by("reasons")


def test_a_condition_reads_as_it_was_typed():
    assert str(parse("a.b  is   Missing")) == "a.b is missing"
    assert parse("prompt contains a < b = c").value == "a < b = c"
