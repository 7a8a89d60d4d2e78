"""Every command that README.md and docs/ show: run as printed beside a small quickstart's run, or known not to be."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from documented import PAGES, blocks, commands, small_quickstart
from paths import ROOT
from skimage import data as photographs
from skimage.io import imsave

import flows.playground
import pipeline.cli
import tokenar.cli

NOT_HERE = {
    "make quickstart": "tests/flows/test_quickstart.py runs what it runs",
    "flows.quickstart": "tests/flows/test_quickstart.py runs it",
    "make test": "runs this test",
    "make accelerator": "tests/benchmarks/test_accelerator.py runs what it runs",
    "benchmarks/accelerator.py": "tests/benchmarks/test_accelerator.py runs it",
    "prefect ": "tests/flows/test_deployments.py runs all of them with a server and a worker",
    "PYTHONPATH=. instructar": "tests/pipeline/test_add_a_stage.py runs them with the page's files",
    "make carry": "downloads wheels; tests/benchmarks/test_accelerator.py holds that they are all that is imported",
    "build/carry": "needs those wheels",
    "benchmarks/filters.py": "takes ten minutes; its parts are those of every curation",
    "--profile paper": "needs the paper's weights",
    "instructar models fetch": "needs a network",
    "hf download": "needs a network",
    "--push me/quickstart": "needs a token; tests/pipeline/exchange/test_hub.py pushes to a double of the hub",
    "export HF_TOKEN": "a secret of the reader's",
    "tokenar-encode": "needs the weights of VQ-16 and T5; tests/tokenar/data/test_encode.py has small ones",
    "subject-spatial": "needs SubjectSpatial200K; tests/pipeline/exchange/test_pairs.py has a small one",
    "--preset single_subject": "needs a GPU and encoded shards",
    "--encoders paper": "needs the paper's weights",
    "tokenar-import": "needs published weights; tests/tokenar/weights has tiny ones",
    "tokenar-export": "needs an imported model; tests/tokenar/weights has tiny ones",
    "--tokenizer vq_ds16_t2i.pt": "needs published weights; tests/tokenar/weights has tiny ones",
    "models/tokenar": "needs an imported model; tests/tokenar/weights has tiny ones",
    "--preset tokenar_xl": "needs a GPU and encoded shards",
    "torchrun": "needs eight GPUs; tests/tokenar/train/test_parallel.py runs two processes",
    "make pretrain": "takes an hour; tests/flows/test_pretrain.py makes a small one",
    "--profile pretrain": "makes subjects for a minute; tests/flows/test_pretrain.py makes a few",
    "--name unfiltered": "takes ten minutes; tests/pipeline/test_curate.py has unfiltered shards",
    "--sweep": "takes most of an hour; tests/tokenar/sweeps runs small ones",
    "instructar merge": "needs runs over two pools; tests/pipeline/upkeep/test_merge.py merges small ones",
    "data/both": "needs the merged dataset; tests/pipeline/upkeep/test_merge.py trains on one",
    "instructar review runs/quickstart --reviewer Ada": "serves a page; tests/pipeline/pages walks through it",
    "make chaos": "takes half an hour; tests/pipeline/engines/test_chaos.py is a short one",
    "benchmarks/engine.py": "takes minutes; tests/benchmarks runs a small one",
    "benchmarks/copies.py": "needs Debian's stamps; tests/benchmarks runs it on two pools",
    "benchmarks/shards.py": "takes minutes; tests/benchmarks runs a small one",
    "benchmarks/costs/planning.py": "takes minutes; tests/benchmarks runs a small one",
    "benchmarks/costs/curation.py": "takes minutes; its runs are curations as others",
    "benchmarks/costs/exploring.py": "takes minutes; tests/benchmarks runs a small one",
    "instructar explore": "serves a page until Ctrl-C; tests/pipeline/pages/test_browser_explore.py uses it",
    "tokenar-playground": "serves until Ctrl-C; tests/flows/test_browser_playground.py opens it",
    "benchmarks/ceilings.py": "fits three codebooks for minutes; tests/benchmarks has figures that are known",
}
ENDS_WITH = {"instructar models check": 1}
"""Exit codes other than 0: the models are missing on the machine of a test."""
PROGRAMS = {"instructar", "tokenar-train", "tokenar-sample", "tokenar-eval", "tokenar-attention"}
OURS = PROGRAMS | {"tokenar-encode", "tokenar-import", "tokenar-export", "tokenar-playground", "tokenar.cli"}
READING = "models|status|estimate|diff|merge|prune|review|select|export|import"
"""Commands of instructar that take no settings of a small run."""
FEWER = "--set samples=12 --set part_size=4 --set planning.test_share=0.25"
"""The settings of the small run, where the command would make the profile's 96 samples or more."""


def why_not(command: str) -> str | None:
    return next((why for part, why in NOT_HERE.items() if part in command), None)


def test_every_block_and_command_is_known():
    found = {page.name: blocks(page) for page in PAGES}
    assert {language for page in found.values() for language, _ in page} <= {"", "sh", "python", "yaml", "json"}
    everything = [command for page in PAGES for command in commands(page)]
    for command in everything:
        assert why_not(command) or shlex.split(command)[0] in PROGRAMS, command
    for part in NOT_HERE:
        assert any(part in command for command in everything), f"{part}: no page shows it any more"


@pytest.mark.parametrize("command", [command for page in PAGES for command in commands(page)])
def test_a_command_has_the_options_it_is_shown_with(command):
    words = shlex.split(command)
    ours = next((k for k, word in enumerate(words) if word in OURS), None)
    if ours is None:
        return
    if words[ours] == "instructar":
        known = typer.main.get_command(pipeline.cli.app)
        while hasattr(known, "commands"):
            known = known.commands[words[ours := ours + 1]]
    elif words[ours] == "tokenar-playground":
        known = typer.main.get_command(flows.playground.app)
    else:
        name = words[ours + 1] if words[ours] == "tokenar.cli" else words[ours].removeprefix("tokenar-")
        known = typer.main.get_command(getattr(tokenar.cli, f"{name}_app"))
    options = {option for parameter in known.params for option in parameter.opts + parameter.secondary_opts}
    assert {word for word in words[ours:] if word.startswith("--")} <= options


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(folder, environment) of a reader who has run the quickstart and has some pictures; runs are kept small."""
    folder = tmp_path_factory.mktemp("reader")
    small_quickstart(folder)
    for name, category in {"chelsea": "cat", "astronaut": "person", "coffee": "cup", "rocket": "thing"}.items():
        (folder / "home/pictures" / category).mkdir(parents=True)
        imsave(folder / f"home/pictures/{category}/{name}.png", getattr(photographs, name)(), check_contrast=False)
    for name, source in {"cat": "cat/chelsea", "cup": "cup/coffee", "table": "thing/rocket"}.items():
        shutil.copy(folder / f"home/pictures/{source}.png", folder / f"{name}.png")
    (folder / "scene/ref").mkdir(parents=True)
    shutil.copy(folder / "cat.png", folder / "scene/ref/0.png")
    shutil.copy(folder / "table.png", folder / "scene/background.png")
    (folder / "scene/description.txt").write_text("a cat on a table")
    (drawn,) = folder.glob("runs/quickstart/training/evaluation/*/samples")
    shutil.copytree(drawn, folder / "home/dreamo/pictures")

    here = Path(sys.executable).parent
    (folder / "bin").mkdir()
    for program in PROGRAMS:  # the real programs, told last to do little
        less = {"tokenar-train": "--steps 2", "instructar": FEWER}.get(program, "")
        text = f'#!/bin/sh\ncase "$1" in {READING}) ;; *) less="{less}" ;; esac\nexec {here / program} "$@" $less\n'
        (folder / "bin" / program).write_text(text)
        (folder / "bin" / program).chmod(0o755)
    env = os.environ | {
        "HOME": str(folder / "home"), "PATH": f"{folder / 'bin'}:{here}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return folder, env


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_does_what_it_shows(place, page):
    folder, env = place
    if page.name != "README.md" and not (folder / "runs/model-1").exists():  # the README trains it
        shutil.copytree(folder / "runs/quickstart/training/model", folder / "runs/model-1/model")
    for language, text in blocks(page):
        if language == "json":
            (folder / "scenes.json").write_text(text)
    for command in commands(page):
        if why_not(command):
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300
        )  # fmt: skip
        assert done.returncode == ENDS_WITH.get(command, 0), f"{command}\n{done.stdout}\n{done.stderr}"
    if page.name in ("add-a-stage.md", "notebook.md", "weights.md"):
        return  # their code has tests of its own, or needs published weights
    sample = next(iter(folder.glob("runs/quickstart/attention/samples/*.safetensors")), None)
    for language, text in blocks(page):
        if language == "python":
            text = text.replace("dbe449b0ae863925", sample.stem if sample else "")
            code = [sys.executable, "-c", text]
            done = subprocess.run(code, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{text}\n{done.stderr}"
