"""docs/notebook.md: its cells run one after the other, and the public names are those that the packages promise."""

import re
import subprocess
import sys

import pytest
from documented import ROOT
from PIL import Image

PAGE = (ROOT / "docs" / "notebook.md").read_text()
CELLS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
@pytest.mark.long
def test_the_cells_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in CELLS:
        exec(cell, names)
    assert (tmp_path / names["paths"]["report"]).stat().st_size > 100_000
    assert set(names["run"].manifest.decision) <= {"kept", "rejected", "error", "undecided"}
    assert isinstance(names["run"].picture(names["run"].manifest.sample_id[0]), Image.Image)
    assert len(names["samples"]) == (names["run"].manifest.query("split == 'train'").decision == "kept").sum()
    assert names["summary"]["steps"] == 20
    assert names["drawn"].size == (96, 96)
    (method,) = names["result"]["methods"].values()
    assert method["figures"]["identity"] is not None


def test_a_cell_is_three_lines():
    assert len(CELLS) == 7
    assert all(len([line for line in cell.splitlines() if line]) == 3 for cell in CELLS)


@pytest.mark.parametrize("package", ["pipeline", "tokenar"])
def test_public_names_are_there_and_cost_nothing_until_they_are_used(package):
    script = (
        f"import sys, {package} as p\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
        "assert p.__all__, 'no public name'\n"
        "print([name for name in p.__all__ if getattr(p, name) is None])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
