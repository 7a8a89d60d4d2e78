"""benchmarks/shards.py at a small size: it runs to its line, and has all of its figures."""

import json
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.slow
def test_it_measures_both_sides():
    command = [sys.executable, "benchmarks/shards.py", "--samples", "6", "--size", "64", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["samples"] == 6
    assert line["ratio"] == pytest.approx(line["bare_s"] / line["ours_s"], rel=0.05)
