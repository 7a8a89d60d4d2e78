"""What a person says of a sample overrides thresholds and mattes, and only its own part is made again."""

import datetime
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small.curation import made, small_config

from data_schemas.errors import UserError
from data_schemas.tables import REVIEW
from pipeline.curate import curate
from pipeline.dataset.picture_reader import PictureReader
from pipeline.jobs import PartJob
from pipeline.making import stage_inputs
from pipeline.report.results import read_manifest


def say(run_url, *rows):
    blank = {"alpha_threshold": None, "matte": None, "verdict": None, "reason": None, "reviewer": "Ada"}
    now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    pq.write_table(REVIEW.table([{**blank, "time": now, **row} for row in rows]), f"{run_url}/review.parquet")


@pytest.fixture
def reviewed(copied, small_run):
    """Config and manifest of a run of its own to write into."""
    return small_config(copied), read_manifest(small_run[0])


def test_a_verdict_wins_over_the_thresholds(reviewed):
    config, before = reviewed
    kept, rejected = (before[before.decision == d].sample_id.iloc[0] for d in ("kept", "rejected"))
    say(config.run_url, {"sample_id": kept, "verdict": "rejected", "reason": "two left hands"},
        {"sample_id": rejected, "verdict": "kept"})  # fmt: skip
    result = curate(config)
    after = read_manifest(result).set_index("sample_id")
    assert made(result) == {"decide", "shards"}
    assert after.decision[kept] == "rejected"
    assert list(after.reasons[kept]) == ["review"]
    assert (after.reviewer[kept], after.review_reason[kept]) == ("Ada", "two left hands")
    assert after.decision[rejected] == "kept"
    assert isinstance(after.shard[rejected], str) == (after.planted_fault[rejected] == "none")
    others = after.index.difference([kept, rejected])
    pd.testing.assert_series_equal(after.decision[others], before.set_index("sample_id").decision[others])
    assert not made(curate(config))


@pytest.mark.slow
def test_a_matte_or_threshold_of_ones_own_remakes_that_part_alone(reviewed):
    config, before = reviewed
    first, last = before.sample_id.iloc[0], before.sample_id.iloc[-1]
    matte = np.zeros((256, 256), np.uint8)
    matte[60:200, 40:220] = 255
    picture = io.BytesIO()
    Image.fromarray(matte).save(picture, "PNG")
    folder = Path(config.run_url) / "mattes"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture.getvalue())
    say(config.run_url, {"sample_id": first, "matte": "mattes/a.png"}, {"sample_id": last, "alpha_threshold": 1.0})
    result = curate(config)
    assert [p.cached for p in result.summaries["matting"]] == [False, True, False]
    assert all(p.cached for p in result.summaries["synthesis"])
    reader = PictureReader(result.run, result.pool_digest)
    assert np.array_equal(np.asarray(reader.picture(first, "alpha")), matte)
    target, background = (np.asarray(reader.picture(last, name)) for name in ("target", "background"))
    assert np.array_equal(target, background)  # nothing is above 1, so nothing is cut out

    def reviews(stage):
        inputs = stage_inputs(PartJob(result.run, stage, "part-00000", "", result.pool_digest), ("plan",))
        return {sample.sample_id: sample.review for sample in inputs.samples()[0]}

    assert reviews("matting")[first]["matte_png"] == picture.getvalue()
    assert set(reviews("identity").values()) == {None}, "what does not concern a stage is not read for it"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"verdict": "maybe"}, "column 'verdict', row 0: 'maybe' is not one of kept, rejected"),
        ({"alpha_threshold": 3.0}, "column 'alpha_threshold', row 0: 3.0 is above 1"),
        ({"matte": "nowhere.png"}, r"the matte nowhere\.png of sample \w+ cannot be read"),
    ],
)
def test_a_bad_review_is_one_clear_line(reviewed, row, line):
    config, before = reviewed
    say(config.run_url, {"sample_id": before.sample_id.iloc[0], **row})
    with pytest.raises(UserError, match=line):
        curate(config)


def test_a_review_that_is_no_table(reviewed):
    config, _ = reviewed
    with open(f"{config.run_url}/review.parquet", "wb") as file:
        file.write(b"PAR1 not")
    with pytest.raises(UserError, match=r"review\.parquet: not a readable Parquet file"):
        curate(config)


@pytest.mark.parametrize(
    "matte", ["/etc/hostname", "../../secret.png", "mattes/../../x.png", "nowhere.png", "mattes", "pipe"]
)
def test_a_matte_is_a_file_in_the_runs_folder(reviewed, matte):
    config, before = reviewed
    (Path(config.run_url) / "mattes").mkdir()
    os.mkfifo(Path(config.run_url) / "pipe")
    say(config.run_url, {"sample_id": before.sample_id.iloc[0], "matte": matte})
    with pytest.raises(UserError, match=f"matte {matte} of sample"):
        curate(config)
