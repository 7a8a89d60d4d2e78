"""Parts are made while Prefect's server is away, although their progress cannot be shown there."""

import pytest

from flows import engine
from pipeline.core.progress import StageProgress
from pipeline.making import PartSummary


@pytest.mark.parametrize("gone", ["create_progress_artifact", "update_progress_artifact"])
def test_a_server_that_is_away_ends_no_part(gone, monkeypatch):
    asked = []

    def answers(*_, **__):
        return "an artifact"

    def refuses(*_, **__):
        asked.append(gone)
        raise ConnectionError("no server")

    for name in ("create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(engine, name, refuses if name == gone else answers)
    monkeypatch.setattr(engine, "SHOWN_EVERY", 0.0)
    with StageProgress("matting", 2) as progress:
        bar = engine._Bar("matting", 2, progress)
        for part in ("part-00000", "part-00001"):
            bar.made(PartSummary("matting", part, "", False, {"ok": 1}, 0.0))
        bar.show()
        assert progress.done == 2
    assert asked == [gone], "each try takes a minute"
