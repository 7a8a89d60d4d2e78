"""Precision, recall and yield on planted faults by hand."""

import pandas as pd
import pytest

from pipeline.report.planted import planted, wilson


def table(*rows):
    columns = ["planted_fault", "decision", "reasons"]
    return pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows])


def test_figures_by_hand():
    found = planted(table(
        ("none", "kept", []), ("none", "kept", []), ("none", "rejected", ["colours_differ"]), (None, "error", ["x"]),
        ("hue", "rejected", ["colours_differ", "identity_low"]), ("hue", "kept", []), ("jpeg", "undecided", ["s"]),
    ))  # fmt: skip
    assert found is not None
    assert (found["planted"], found["caught"], found["recall"]) == (3, 2, 0.6667)
    assert (found["clean"], found["clean_kept"], found["clean_kept_share"]) == (3, 2, 0.6667)
    assert found["precision"] == 0.6667  # two of the three that were not kept
    assert (found["yield"], found["kept_faulty"]) == (0.5, 0.3333)
    assert found["by_fault"]["hue"] == {
        "planted": 2, "caught": 1, "recall": 0.5, "recall_interval": wilson(1, 2),
        "reasons": {"colours_differ": 1, "identity_low": 1},
    }  # fmt: skip
    assert list(found["by_fault"]) == ["hue", "jpeg"]


def test_without_planted_faults_there_are_no_figures():
    assert planted(table(("none", "kept", []))) is None


def test_wilsons_interval_by_hand():
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = 0.9, n = 30, z = 1.959964
    assert wilson(27, 30) == pytest.approx([0.7438, 0.9654], abs=1e-4)
    assert wilson(0, 0) is None
    assert wilson(30, 30) == pytest.approx([0.8865, 1.0], abs=1e-4)
