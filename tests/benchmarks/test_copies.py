"""Near-copies are found however they were made, and different subjects are not taken for copies."""

import json
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.slow
@pytest.mark.long
def test_nearly_all_copies_of_a_few_photographs_and_no_others_are_found():
    command = [sys.executable, "benchmarks/copies.py", "--pools", "packaged", "generated", "--count", "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    for pool in ("packaged", "generated"):
        assert line[pool]["subjects"] == 12
        assert line[pool]["mistaken"] == 0
        assert len(line[pool]["found"]) == 8
        assert min(line[pool]["found"].values()) > 0.9
