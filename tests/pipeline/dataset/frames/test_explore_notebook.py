"""docs/explore.ipynb runs from its first cell to its last, in a kernel as a reader has one."""

import shutil

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from paths import ROOT


@pytest.mark.slow
def test_the_notebook_runs(small_run, tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "docs/explore.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "is stored without outputs"
    shutil.copytree(small_run[0].run.config.run_url, tmp_path / "runs/quickstart", symlinks=True)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = ["".join(str(output.get("data", output)) for output in cell.outputs) for cell in cells]
    assert "12 of 12 samples" in shown[0]
    assert "subject_missing" in shown[1]
    assert shown[2].count("data:image/png;base64,") == 12
    assert "kept" in shown[2]
    manifest = pd.read_parquet(tmp_path / "runs/quickstart/dataset/manifest.parquet")
    saved = pd.read_parquet(tmp_path / "selection/manifest.parquet")
    assert set(saved.sample_id) == set(manifest.query("decision == 'kept' and similarity_min > 0.7").sample_id)
