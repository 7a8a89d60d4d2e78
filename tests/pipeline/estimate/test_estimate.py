"""What a larger run will take, told from a smaller one and then measured."""

import json
import time

import pytest
from commands import run_here
from troubled.runs import config

from pipeline import cli
from pipeline.curate import curate
from pipeline.estimate.timing import Measured, wall_seconds
from pipeline.report.results import curate_dataset

EVEN = Measured("even", [2.0] * 10, apart=0.5, load=10.0, bytes=1000.0)


@pytest.mark.parametrize(
    ("samples", "places", "wall", "busy"),
    [
        (16, 1, 10 + 32.5, 42.5),
        (64, 2, 10 + 2 * 32.5, 20 + 4 * 32.5),  # four parts of 16 samples
        (64, 3, 10 + 2 * 32.5, 30 + 4 * 32.5),  # the fourth part waits for a place
        (64, 8, 10 + 32.5, 80 + 4 * 32.5),
    ],
)
def test_parts_are_given_to_the_place_that_is_free_first(samples, places, wall, busy):
    assert wall_seconds(EVEN, samples, 16, places) == pytest.approx((wall, busy))


def test_many_samples_take_their_mean():
    spread = Measured("spread", [1.0, 3.0], apart=0.0, load=0.0, bytes=0.0)
    _, busy = wall_seconds(spread, 1_000_000, 10_000, 64)
    assert busy == pytest.approx(2e6, rel=0.01)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_of_500_takes_what_one_of_96_says(tmp_path):
    """The stage waits, so a busy machine changes little. The pool, which an estimate leaves out, is there before."""
    settings = {"trouble": {"rest": 0.12}, "part_size": 8, "samples": 96}
    curate_dataset(config(tmp_path / "small", **settings))
    told = run_here(cli.main, "instructar", "estimate", tmp_path / "small" / "stubs", "--samples", 500, "--gpus", 2,
                    "--price", 3, "--json")  # fmt: skip
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    curate(config(tmp_path / "large", **{**settings, "samples": 8}))
    began = time.perf_counter()
    curate(config(tmp_path / "large", **{**settings, "samples": 500}))
    expected = 3600 * found["hours_on_the_wall"] * 492 / 500
    assert expected == pytest.approx(time.perf_counter() - began, rel=0.25)
    assert found["kept"] == 500
    assert found["cost"] == pytest.approx(found["hours_on_the_wall"] * 2 * 3)
    table = run_here(cli.main, "instructar", "estimate", tmp_path / "small" / "stubs", "--samples", 500).stdout
    assert "500 samples at 1 places: about 500 kept" in table


def test_a_run_that_is_not_there_is_one_line(tmp_path):
    told = run_here(cli.main, "instructar", "estimate", tmp_path / "none", "--samples", 5)
    assert told.returncode == 2
    assert "no run was curated there" in told.stderr
