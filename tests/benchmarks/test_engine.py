"""benchmarks/engine.py at a small size: it runs to its line, and has all of its figures."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.long
def test_it_measures_everything_that_it_names():
    command = [sys.executable, "benchmarks/engine.py", "--samples", "400"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    for name in ("ms_per_sample", "cached_s", "memory_ratio", "workers_ratio"):
        assert line[name] > 0
    assert {"threshold_s", "prefect_ms_per_sample"} <= line.keys()
