"""The golden tests on another root than the usual one: whatever they need, they take from there."""

import json
import os
import subprocess
import sys

import pytest
import torch
from golden.other_root import write_dreamrelation, write_keys, write_rotary
from paths import ROOT, TESTS
from tiny.sdxl import needs_tiny

WANTED = {
    "tokenar/model/test_golden_model.py": "test_keys_and_shapes or test_rotary_tables",
    "pipeline/synthesis/test_dreamrelation_golden.py": "test_resampler or test_image_encoder or test_pipeline",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    torch.manual_seed(0)
    write_keys(folder)
    write_rotary(folder)
    write_dreamrelation(folder / "dreamrelation")
    return folder


def golden_tests(root):
    """How the wanted tests end on a root, in pytest's words."""
    chosen = [str(TESTS / file) for file in WANTED]
    names = " or ".join(WANTED.values())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *chosen, "-k", names],
        env={**os.environ, "GOLDEN": str(root)}, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout


@needs_tiny
@pytest.mark.slow
@pytest.mark.long
def test_another_root_of_the_same_shape_passes_and_fails_for_its_own_numbers(root):
    code, told = golden_tests(root)
    assert code == 0, told[-3000:]
    assert "skipped" not in told, "a case was not found"

    path = root / "tokenar/keys/two.json"
    keys = json.loads(path.read_text())
    keys["keys"]["norm.weight"] = [97]
    path.write_text(json.dumps(keys))
    (root / "dreamrelation/models").mkdir()
    (root / "dreamrelation/seer").rename(root / "dreamrelation/models/viewer")
    code, told = golden_tests(root)
    failed = {line.split("::")[1].split(" ")[0] for line in told.splitlines() if line.startswith("FAILED")}
    assert (code, failed) == (1, {"test_keys_and_shapes[two]"}), told[-3000:]
