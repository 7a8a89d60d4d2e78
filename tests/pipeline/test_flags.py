"""Options are text and reach the config as they stand; only --set is YAML. Heavy packages wait until they are used."""

import os
import resource
import subprocess
import sys

import pytest
from paths import ROOT

from data_schemas.errors import UserError
from pipeline import cli
from pipeline.config import CurationConfig

COMMANDS = {
    "pipeline.cli": ["", "curate", "rerun", "report", "calibrate", "models check", "models fetch"],
    "tokenar.cli": ["", "encode", "train", "sample", "eval", "attention"],
}
HEAVY = {"torch", "timm", "cv2", "sklearn", "transformers", "matplotlib", "pandas", "prefect"}


def config(**options):
    return cli._config("embedded", None, options.pop("overrides", None), **options)


@pytest.mark.parametrize(
    "text", ["my #1 photos", "007", "2024", "yes", "null", "1e3", "a: b", "~", "[x]", "2024-01-01"]
)
def test_flags_are_text(text):
    settings = config(pool=text, root=text)
    assert settings.references.pool == text
    assert settings.root == os.path.expanduser(text)


@pytest.mark.parametrize("name", ["007", "2024", "yes", "null", "1e3", "2024-01-01"])
def test_a_name_that_yaml_would_read_otherwise(name):
    assert config(name=name).name == name


def test_set_is_yaml_and_wins():
    settings = config(samples=4, overrides=["samples=8", "synthesis.fault_share=1.0e-1", "planning.relations=[hug]"])
    assert (settings.samples, settings.synthesis.fault_share) == (8, 0.1)
    assert settings.planning.relations == ["hug"]


def test_a_profile_cannot_be_a_path():
    with pytest.raises(UserError, match="does not exist; there is: embedded, paper"):
        CurationConfig.load("../profiles/embedded")


def test_an_address_that_nobody_knows():
    with pytest.raises(UserError, match="root: Protocol not known: foo"):
        CurationConfig.load(given={"root": "foo://bucket"})


@pytest.mark.parametrize(
    ("root", "place"),
    [
        ("~/runs", "/home/of-me/runs"), ("file:///data/runs", "/data/runs"), ("file:/data/runs", "/data/runs"),
        ("file://~/runs", "/home/of-me/runs"), ("local:///data", "/data"), ("/", "/"), ("runs/../x/", "runs/../x/"),
        ("./~nobody-of-this-name", "./~nobody-of-this-name"), ("s3://~bucket/x", "s3://~bucket/x"),
    ],
)  # fmt: skip
def test_a_root_is_one_place_however_it_is_written(root, place, monkeypatch):
    """Some of what a run writes goes through fsspec, which reads ~ and file:// by itself, and some does not."""
    monkeypatch.setenv("HOME", "/home/of-me")
    assert config(root=root).root == place


@pytest.mark.parametrize("root", ["~nobody-of-this-name/runs", "file://~nobody-of-this-name", "file://"])
def test_a_root_that_is_no_place_is_named(root):
    with pytest.raises(UserError, match=f"root: {root}: .*; give"):
        config(root=root)


def test_a_million_parts_are_enough():
    with pytest.raises(UserError, match="raise part_size"):
        CurationConfig.load(given={"samples": 10_000_000, "part_size": 1})


def imported(code):
    """The heavy packages that a piece of Python imports, and the CPU seconds it takes."""
    shown = f"\nimport sys\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code + shown], capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout.splitlines()[-1], seconds


HELP = """
import sys, {module}
for arguments in {commands!r}:
    for last in ("--help", "--no-such-option", "--version"):
        sys.argv = ["command", *arguments.split(), last]
        try:
            {module}.main()
        except SystemExit as left:
            assert left.code == (2 if "such" in last or ("version" in last and arguments and {group})
                                 else 0), (arguments, last, left.code)
"""


@pytest.mark.parametrize("module", COMMANDS)
def test_help_and_usage_mistakes_import_nothing_heavy(module):
    group = module == "pipeline.cli"  # whose --version is the program's, not each command's
    commands = [c for c in COMMANDS[module] if c or group]
    heavy, seconds = imported(HELP.format(module=module, commands=commands, group=group))
    assert heavy == "[]"
    assert seconds < 3, "one start, and eighteen times a help"


def test_a_config_waits_for_no_network():
    heavy, _ = imported("from pipeline.config import CurationConfig; CurationConfig.load('paper')")
    assert heavy in ("['cv2']", "[]")


def test_settings_of_a_training_wait_for_no_torch():
    code = (
        "import tokenar.cli as c, sys\nsys.argv = ['c', 'train', '--shards', 'x', '--lr', 'inf']\n"
        "try:\n    c.main()\nexcept SystemExit as left:\n    assert left.code == 2"
    )
    assert imported(code)[0] == "[]"
