"""benchmarks/costs/planning.py at a small size: it runs to its line, and has all of its figures."""

import json
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.slow
def test_it_measures_every_size():
    command = [sys.executable, "benchmarks/costs/planning.py", "--samples", "20", "40", "--subjects", "400"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert list(line["samples"]) == ["20", "40"]
    assert all(row["ms_per_sample"] > 0 for row in line["samples"].values())
