"""Does exactly what docs/add-a-stage.md shows."""

import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from paths import ROOT
from small.curation import small_config

from pipeline.curate import curate
from pipeline.jobs import need_part

PAGE = (ROOT / "docs" / "add-a-stage.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.mark.slow
def test_another_backend_is_one_file_and_one_line(small_run, tmp_path, monkeypatch):
    shutil.copytree(small_run[0].run.config.root, tmp_path / "runs", symlinks=True)
    (tmp_path / "dark_on_white.py").write_text(blocks("python")[1])
    monkeypatch.syspath_prepend(tmp_path)
    result = curate(small_config(tmp_path / "runs", **yaml.safe_load(blocks("yaml")[1])))
    assert all(part.cached for part in result.summaries["synthesis"])
    assert not any(part.cached for part in result.summaries["matting"])
    manifest = pd.read_parquet(result.manifest_url)
    assert manifest.soft_share.median() > 0.5, "this is no GrabCut"
    assert need_part(result.run, "matting", "part-00000").rows()[0]["model"] == "dark-on-white"


@pytest.mark.slow
def test_the_page_works_as_it_stands(small_run, tmp_path):
    shutil.copytree(small_run[0].run.config.root, tmp_path / "runs", symlinks=True)
    code, line = blocks("python")[0], blocks("yaml")[0]
    assert len(code.splitlines()) < 60
    assert len(line.splitlines()) == 1
    (tmp_path / "sharpness.py").write_text(code)
    own = small_run[0].run.config.model_dump(mode="json", exclude={"filters"}) | {"root": "runs"}
    (tmp_path / "my.yaml").write_text(line + yaml.safe_dump(own))
    first, second = blocks("sh")

    def run(command: str) -> str:
        command = command.replace("instructar", f"{sys.executable} -m pipeline.cli")
        command = command.replace("PYTHONPATH=.", f"PYTHONPATH=.:{ROOT}")
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    log = run(first)
    assert re.search(r"identity +3/3 parts \(3 from the cache\)", log)
    assert re.search(r"sharpness +3/3 parts \(0 from the cache\)", log)
    manifest = pd.read_parquet(tmp_path / "runs/small/dataset/manifest.parquet")
    assert (manifest.sharpness > 0).all()
    assert len(list((tmp_path / "runs/small/sharpness").rglob("part-*.parquet"))) == 3

    highest = float(manifest.sharpness.max())
    log = run(second.replace("blurred=1000", f"blurred={highest + 1}"))
    assert re.search(r"sharpness +3/3 parts \(3 from the cache\)", log)
    manifest = pd.read_parquet(tmp_path / "runs/small/dataset/manifest.parquet")
    assert all("blurred" in reasons for reasons in manifest.reasons)
    report = (tmp_path / "runs/small/report/index.html").read_text()
    assert "blurred" in report
    assert "sharpness" in report
