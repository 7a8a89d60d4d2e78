"""`instructar estimate --profile`: from figures that are those of benchmarks/results, each with where it comes from."""

import importlib.util
import json
import sys

import pytest
from commands import run_here
from paths import ROOT

from pipeline import cli
from pipeline.config import CurationConfig
from pipeline.estimate.from_figures import estimate_profile, known

sys.path.insert(0, str(ROOT / "benchmarks" / "costs"))
import figures


def ask(*options):
    return run_here(cli.main, "instructar", "estimate", *options)


def test_the_figures_are_those_that_were_measured():
    assert figures.OUT.read_text() == figures.text(), "run: python benchmarks/costs/figures.py"
    gpu = json.loads((ROOT / "benchmarks/results/nvidia-h200.json").read_text())["checks"]
    stages = known()["paper"]["stages"]
    assert "'stage_samples_per_s': 7.695" in gpu["stage_matting"]["reason"]
    assert stages["matting"]["seconds"] == round(1 / 7.695, 4)
    # eight steps took 1 / 1.595 s, of which the model 1 / 2.463; thirty take 22 / 8 of that more
    assert stages["synthesis"]["seconds"] == round(1 / 1.595 + 22 / 8 / 2.463, 4)


@pytest.mark.slow
def test_the_page_has_the_table_of_the_command():
    spec = importlib.util.spec_from_file_location("scale_page", ROOT / "docs" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run: python docs/scale.py"


def test_each_figure_says_whether_it_was_measured():
    told = ask("--profile", "paper", "--samples", 1_000_000, "--gpus", 64, "--price", 2.5).stdout.splitlines()
    lines = {line.split()[0]: line for line in told if line}
    assert "measured: NVIDIA H200, benchmarks/results/nvidia-h200.json" in lines["matting"]
    assert "ASSUMED" in lines["semantics"]
    assert "not measured on a GPU" in lines["semantics"]
    assert any(line.startswith("kept: ASSUMED") for line in told)


def test_a_million_samples_take_what_their_seconds_say():
    """The GPU's stages of a million samples, at the same seconds each, on 64 of them."""
    each = {"synthesis": 2.0, "matting": 0.5, "semantics": 1.0, "identity": 0.5}
    given = [option for stage, seconds in each.items() for option in ("--seconds", f"{stage}={seconds}")]
    done = ask("--profile", "paper", "--samples", 1_000_000, "--gpus", 64, "--price", 2.5, *given, "--json")
    found = json.loads(done.stdout)
    loads = sum(row.get("load", 0) for row in known()["paper"]["stages"].values())
    assert found["gpu_hours"] == pytest.approx((4e6 + 64 * loads) / 3600)
    rounds = 245  # of 15,625 parts of 64 samples, on 64 GPUs
    assert found["stages"]["synthesis"]["hours_on_the_wall"] == pytest.approx((rounds * 128 + 3.64) / 3600)
    assert found["stages"]["synthesis"]["source"] == "ASSUMED: as given with --seconds"
    assert found["cost"] == pytest.approx(found["hours_on_the_wall"] * 64 * 2.5)
    alone = found["stages"]["plan"]
    assert alone["hours_on_the_wall"] == pytest.approx(alone["hours"]), "planned in one process, whatever the GPUs"
    assert found["kept"] == pytest.approx(352_900, abs=100)


def test_files_are_counted_as_a_run_has_them(small_run):
    """A small run of the same stages, whose files are there to be counted."""
    run = small_run[0].run
    found = estimate_profile("embedded", run.config, run.config.samples, 1, None, {})
    folders = [run.store(stage).root for stage in run.order()[1:-1]]
    there = sum(len(run.store("plan").fs.ls(folder, detail=False)) for folder in folders)
    shards = 4 * -(-found["kept"] // run.config.shards.samples_per_shard)
    assert found["files"] == there + shards


@pytest.mark.parametrize(("samples", "parts"), [(96, 6), (10_000, 85), (1_000_000, 1057)])
def test_the_files_of_growing_parts_are_counted(samples, parts):
    """Without a part_size a run has sixteen parts of 16 samples, then of 32, and so on to 1024."""
    config = CurationConfig.load("embedded")

    def of_parts(count: int) -> int:
        found = estimate_profile("embedded", config, count, 1, None, {})
        return found["files"] - 4 * -(-found["kept"] // config.shards.samples_per_shard)

    assert of_parts(samples) == parts * of_parts(16)


def test_more_samples_than_a_run_can_have_are_told():
    found = estimate_profile("paper", CurationConfig.load("paper"), 100_000_000, 512, None, {})
    assert any("no single run is that large" in note and "samples" in note for note in found["notes"])
    assert found["gpu_hours"] > 80_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--samples", "5"], "one of the two"),
        (["runs/x", "--profile", "paper", "--samples", "5"], "one of the two"),
        (["runs/x", "--samples", "5", "--seconds", "matting=1"], "go with --profile"),
        (["--profile", "paper", "--samples", "5", "--seconds", "matting"], "expected stage=seconds"),
        (["--profile", "paper", "--samples", "5", "--seconds", "matting=-1"], "expected stage=seconds"),
        (["--profile", "paper", "--samples", "5", "--seconds", "mating=1"], "no such stage; did you mean"),
        (["--profile", "pretrain", "--samples", "5"], "no figure is known for synthesis, matting"),
        (["--profile", "paper", "--samples", "5", "--set", "semantics.backend=openai"], "--seconds semantics=1.5"),
        (["--profile", "papre", "--samples", "5"], "profile 'papre' does not exist"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(options, said):
    done = ask(*options)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_settings_that_the_figure_is_not_for_are_told():
    told = ask("--profile", "paper", "--samples", "80000", "--set", "synthesis.steps=50").stdout
    assert "synthesis: the figure is for backend dreamrelation, steps 30, size 512, and not for steps 50" in told
