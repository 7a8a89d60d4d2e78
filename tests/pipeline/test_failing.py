"""What a run does when samples, stages or people stop it: rows, one line, nothing lost."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from paths import SUPPORT
from small.curation import made, small_config
from troubled.runs import PLANNED, config

from data_schemas.errors import UserError
from pipeline import cli
from pipeline.config import CurationConfig
from pipeline.core.stage import SampleError, describe_error
from pipeline.curate import curate
from pipeline.matting.grabcut import GrabCut
from pipeline.remembered import differences, remembered, taken_up
from pipeline.semantics.imagenet import ImageNetJudge

SMALL_FLAGS = ["--samples", "12", "--set", "part_size=4", "--set", "planning.test_share=0.25", "--set",
               "shards.samples_per_shard=4", "--set", "synthesis.fault_share=0.0"]  # fmt: skip


def in_process(*arguments):
    cli.app(list(arguments))


def spoil(monkeypatch, change):
    """Have the judge of a small run give other scores for sample 5."""
    real = ImageNetJudge.process

    def process(self, sample):
        scores = real(self, sample)
        return change(scores) if sample.plan["index"] == 5 else scores

    monkeypatch.setattr(ImageNetJudge, "process", process)


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (lambda s: s | {"present_min": float("nan")}, "present_min"),
        (lambda s: s | {"present_min": 7.0}, "present_min"),
        (lambda s: s | {"present_min": "much"}, "much"),
        (lambda s: s | {"subject_0_label": "\ud800"}, "surrogates"),
        (lambda s: s | {"surprise": 1.0}, "surprise"),
        (lambda s: s | {"status": "ok"}, "status"),
        (lambda s: s | {"sample_id": "another"}, "sample_id"),
        (lambda s: s | {"present_min": 10**400}, ""),
        (lambda s: None, ""),
        (lambda s: [1, 2], ""),
    ],
)
@pytest.mark.slow
def test_a_score_that_the_table_cannot_hold_is_its_samples_error(copied, monkeypatch, change, column):
    spoil(monkeypatch, change)
    rows = pd.read_parquet(curate(small_config(copied), again="semantics").manifest_url).set_index("index")
    assert rows.decision.loc[5] == "error"
    assert rows.error_stage.loc[5] == "semantics"
    assert column in rows.error_message.loc[5]
    assert (rows.decision == "error").sum() == 1


@pytest.mark.slow
def test_a_stage_of_ones_own_that_leaves_the_program_fails_its_sample(copied, monkeypatch):
    def leave(scores):
        sys.exit("enough")

    spoil(monkeypatch, leave)
    rows = pd.read_parquet(curate(small_config(copied), again="semantics").manifest_url).set_index("index")
    assert (rows.error_code.loc[5], rows.error_message.loc[5]) == ("SystemExit", "enough")
    assert (rows.decision == "error").sum() == 1


def test_messages_that_are_kept_are_the_same_everywhere():
    def said(error):
        return describe_error(error)[1]

    class Thing:
        pass

    assert said(ValueError(f"no {Thing()} here")) == "no <test_failing.Thing> here".replace(
        "test_failing", __name__
    ).replace("Thing>", f"{Thing.__qualname__}>")
    assert (
        said(FileNotFoundError(2, "No such file", "/home/somebody/pool/cat.png")) == "[Errno 2] No such file: 'cat.png'"
    )
    assert said(SampleError("x", "two\nlines \x1b[31mred\u202e")) == "two lines [31mred"


def test_a_stage_that_fails_on_every_sample_ends_the_run_with_its_reason(copied, monkeypatch):
    def refuse(self, sample):
        raise SampleError("judge_http_401", "the key is refused")

    real = ImageNetJudge.process
    monkeypatch.setattr(ImageNetJudge, "process", refuse)
    before = (copied / "small" / "dataset").resolve()
    with pytest.raises(
        UserError, match=r"stage semantics: all 12 samples failed.*judge_http_401 \(the key is refused\)"
    ):
        curate(small_config(copied), again="semantics")
    assert (copied / "small" / "dataset").resolve() == before, "the dataset that is there stays"
    monkeypatch.setattr(ImageNetJudge, "process", real)
    assert "semantics" in made(curate(small_config(copied), retry_errors=True))


@pytest.mark.slow
def test_an_error_in_one_part_begins_no_further_part(tmp_path, monkeypatch):
    begun = []

    def fail(self, samples):
        begun.append(samples[0].sample_id)
        raise MemoryError

    monkeypatch.setattr(GrabCut, "_attempt", fail)
    with pytest.raises(MemoryError):
        curate(small_config(tmp_path, samples=24, part_size=1, workers=2))
    assert len(begun) < 8


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.slow
def test_ctrl_c_ends_a_curation_soon_with_one_line_and_130(tmp_path, twice):
    script = (
        "import os, sys, time\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from pipeline.matting.grabcut import GrabCut\n"
        "from pipeline import cli\n"
        "real, seconds = GrabCut._attempt, float(sys.argv[3])\n"
        "def slow(self, batch):\n"
        "    os.write(1, b'at work\\n')\n"
        "    time.sleep(seconds)\n"
        "    return real(self, batch)\n"
        "GrabCut._attempt = slow\n"
        "sys.argv = ['instructar', 'curate', '--root', sys.argv[1], '--samples', '60', '--set', 'part_size=1']\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(SUPPORT), "60" if twice else "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    if twice:
        time.sleep(1)
        process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert time.monotonic() - began < 20
    assert "Traceback" not in told
    assert "stopping after the parts at work" in told
    whole = list((tmp_path / "quickstart" / "matting").rglob("part-*.parquet"))
    assert len(whole) <= (0 if twice else 4)


def test_a_run_remembers_its_settings_and_tells_where_new_ones_differ(copied, capsys):
    run = small_config(copied)
    assert remembered(run)["samples"] == 12
    capsys.readouterr()
    curate(small_config(copied, decide={"thresholds": {"identity_low": 0.9}}))
    told = capsys.readouterr().err
    assert (
        "settings that differ from this run's last curation: decide.thresholds.identity_low 0.9 (was its default)"
        in told
    )
    curate(small_config(copied, decide={"thresholds": {"identity_low": 0.9}}))
    assert "settings that differ" not in capsys.readouterr().err
    assert remembered(run)["decide"]["thresholds"] == {"identity_low": 0.9}
    (copied / "small" / "settings.json").write_text("[" * 5000)
    curate(small_config(copied))


def test_differences_name_the_key_and_both_values():
    old = {"a": 1, "b": {"c": [1], "d": "x"}, "workers": 2}
    new = {"a": 1, "b": {"c": [1, 2]}, "e": True, "workers": 8}
    assert differences(old, new) == ["b.c [1, 2] (was [1])", 'b.d its default (was "x")', "e true (was its default)"]
    assert json.dumps(differences(old, old)) == "[]"


@pytest.mark.parametrize("root", ["s3://no-such-bucket/runs", "nothing://x", "/dev/null/runs"])
def test_a_place_that_cannot_hold_a_run_is_told_before_any_work(root, monkeypatch, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises((UserError, OSError)):
        curate(small_config(root))
    assert "references" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_there_is_made_again_with_its_own_settings(copied, capsys):
    flags = ["--name", "small", "--root", str(copied)]
    with pytest.raises(SystemExit):  # the settings of the copied run, with a threshold of its own
        in_process("curate", *flags, *SMALL_FLAGS, "--set", "decide.thresholds.identity_low=0.9")
    first = capsys.readouterr().out
    with pytest.raises(SystemExit):
        in_process("rerun", "decide", *flags)
    again = capsys.readouterr()
    assert "(as before)" in again.out
    assert first.split("of 12")[0] == again.out.split("of 12")[0]
    assert "settings that differ" not in again.err
    with pytest.raises(SystemExit):
        in_process("rerun", "decide", *flags, "--set", "decide.thresholds.identity_low=0.4")
    told = capsys.readouterr()
    assert "decide.thresholds.identity_low 0.4 (was 0.9)" in told.err
    assert taken_up(CurationConfig(name="small", root=str(copied))).samples == 12
    assert taken_up(CurationConfig(name="new", root=str(copied))).synthesis.fault_share == 0.2


def test_a_synthesis_that_forgets_a_target_fails_on_that_sample_alone(tmp_path):
    result = curate(config(tmp_path, synthesis={"use": "troubled.stages:Forgets"}))
    manifest = pd.read_parquet(result.manifest_url).set_index("index")
    forgotten = manifest.loc[range(0, PLANNED, 3)]
    assert set(forgotten.error_stage) == {"synthesis"}
    assert set(forgotten.error_code) == {"no_target"}
    assert set(manifest.drop(forgotten.index).decision) == {"kept"}


def test_stages_that_save_no_picture_at_all_are_one_line_when_shards_are_written(tmp_path):
    stages = {"synthesis": {"use": "troubled.stages:Nothing"}, "matting": {"use": "troubled.stages:NothingCut"}}
    with pytest.raises(UserError, match=r"stage synthesis: it saved no picture target .*set saves_pictures"):
        curate(config(tmp_path, **stages))


def test_a_stage_that_reads_no_plan_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"filter 'troubled\.stages:Aimless': it reads .*add 'plan' to them"):
        curate(config(tmp_path, filters=[{"use": "troubled.stages:Aimless"}]))
    assert not list(tmp_path.iterdir())
