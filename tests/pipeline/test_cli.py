"""A user's mistake gets one clear line and exit code 2, never a traceback."""

import subprocess
import sys

import pytest
from PIL import Image

from pipeline import cli


@pytest.fixture
def instructar(monkeypatch, capsys):
    """Runs the console command in this process; returns (exit code, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["instructar", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    (root / "empty").mkdir()
    (root / "one" / "cats").mkdir(parents=True)
    cat = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    cat.paste((200, 30, 30, 255), (8, 8, 56, 56))
    cat.save(root / "one" / "cats" / "red.png")
    (root / "broken" / "cats").mkdir(parents=True)
    (root / "broken" / "cats" / "fake.png").write_text("no picture")
    bombs = root / "bombs" / "cats"
    bombs.mkdir(parents=True)
    Image.new("1", (20_000, 20_000)).save(bombs / "bomb.png")
    (root / "typo.yaml").write_text("synthesis: {fault_shar: 0.1}\n")
    (root / "list.yaml").write_text("- 1\n")
    (root / "not.yaml").write_text("a: [1\n")
    (root / "file").write_text("")
    return root


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--pool", "{root}/nowhere"], "nowhere"),
        (["--pool", "{root}/empty"], "empty"),
        (["--pool", "{root}/one"], "categor"),
        (["--pool", "{root}/broken"], "fake.png"),
        (["--pool", "{root}/bombs"], "pixels"),
        (["--set", "planning.relations=[hug, tickle]"], "tickle"),
        (["--set", "decide.thresholds.identity_low=1.5"], "decide.thresholds.identity_low: 1.5 is outside"),
        (["--set", "decide.thresholds.identity_lo=0.5"], "decide.thresholds.identity_lo: no such reason"),
        (["--set", "synthesis.fault_share=2"], "synthesis.fault_share"),
        (["--set", "samples"], "expected key=value"),
        (["--config", "{root}/typo.yaml"], "synthesis.fault_shar: no such setting; did you mean fault_share?"),
        (["--config", "{root}/list.yaml"], "list.yaml"),
        (["--config", "{root}/not.yaml"], "not.yaml"),
        (["--config", "{root}/missing.yaml"], "missing.yaml"),
        (["--profile", "papr"], "profile 'papr' does not exist; did you mean paper?"),
        (["--name", "../up"], "name"),
        (["--set", "filters=[{{use: nowhere:Filter}}]"], "filter 'nowhere:Filter' cannot be imported"),
    ],
)
def test_one_line_and_exit_code_2(instructar, folders, arguments, expected, tmp_path):
    filled = [a.format(root=folders) for a in arguments]
    code, shown = instructar("curate", "--root", str(tmp_path), "--samples", "4", *filled)
    assert code == 2
    last = shown.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert expected in last
    assert "Traceback" not in shown


@pytest.mark.slow
def test_the_installed_command_does_the_same(folders):
    command = [sys.executable, "-m", "pipeline.cli", "curate", "--pool", str(folders / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_that_does_not_exist_is_named(instructar, tmp_path):
    code, shown = instructar("rerun", "sharpen", "--root", str(tmp_path))
    assert code == 2
    assert "stage 'sharpen' does not exist; there is: references, plan, synthesis" in shown


def test_a_report_without_a_run_says_so(instructar, tmp_path):
    code, shown = instructar("report", "--root", str(tmp_path))
    assert code == 2
    assert "run it first" in shown


def test_a_root_that_is_a_file_is_named(instructar, folders):
    code, shown = instructar("curate", "--root", str(folders / "file"), "--samples", "4")
    assert code == 2
    assert str(folders / "file") in shown
