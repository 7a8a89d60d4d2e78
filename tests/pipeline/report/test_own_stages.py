"""A run whose synthesis and matting a user wrote, which know no planted fault and no true matte."""

import json
from pathlib import Path

from troubled.runs import PLANNED, config

from pipeline.report.results import curate_dataset


def test_it_has_its_report_and_its_funnel(tmp_path):
    places = curate_dataset(config(tmp_path))
    assert places["kept"] == f"{PLANNED} of {PLANNED}"
    funnel = json.loads(Path(places["metrics"]).read_text())["funnel"]
    assert (funnel["planned"], funnel["made"], funnel["kept"]) == (PLANNED, PLANNED, PLANNED)
    assert "<html" in Path(places["report"]).read_text()
