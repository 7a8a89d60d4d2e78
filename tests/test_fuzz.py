"""A part of the hostile inputs with every run of the tests; ``make fuzz`` runs all of them."""

import os
import subprocess
import sys

import pytest
from paths import ROOT, SUPPORT

PART = ["config yaml", "set ", "own ", "name ", "betas", "address root", "quickstart --", "select where", "safetensors"]
"""Settings, flags, own stages, conditions and headers of weights: a few milliseconds each, after the imports."""


@pytest.mark.slow
@pytest.mark.long
def test_hostile_settings_flags_and_stages():
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "fuzz", *PART], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    passed, _, _ = done.stdout.splitlines()[-1].partition(" passed, 0 failed")
    assert int(passed) > 100


@pytest.mark.slow
def test_there_are_enough_cases_and_each_has_a_name():
    from fuzz import all_cases

    assert len(all_cases()) >= 1300
