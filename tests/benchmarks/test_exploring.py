"""benchmarks/costs/exploring.py at a small size: it runs to its line, and has all of its figures."""

import json
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.slow
@pytest.mark.long
def test_it_asks_every_question():
    command = [sys.executable, "benchmarks/costs/exploring.py", "--samples", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["samples"] == 60
    assert all(line[f"{name}_s"] > 0 for name in ("first_page", "filter", "pictures", "compare", "text", "again"))
