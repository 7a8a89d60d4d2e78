"""Every command that is given a bucket's address, with a real S3 server: its work, or one line for what is wrong."""

import socket

import buckets
import fsspec
import pytest
from commands import run_here
from troubled.runs import config

import tokenar.cli
from pipeline import cli

SECRETS = (buckets.KEYS["AWS_ACCESS_KEY_ID"], buckets.KEYS["AWS_SECRET_ACCESS_KEY"])
RUN = ("--root", "{bucket}", "--name", "stubs")
COMMANDS = {
    "curate": ("curate", *RUN),
    "rerun": ("rerun", "decide", *RUN),
    "report": ("report", *RUN),
    "report with a profile": ("report", "--profile", "embedded", *RUN),
    "calibrate": ("calibrate", "--stage", "identity", *RUN),
    "status": ("status", "{bucket}/stubs"),
    "estimate": ("estimate", "{bucket}/stubs", "--samples", "100"),
    "train": ("--shards", "{bucket}/stubs/dataset/train-*.tar", "--out", "{out}/model", "--steps", "1"),
}
FIRST_READS = ("curate", "status", "train")
"""One for each way in which a command first reads from its bucket."""


def told(command: str, bucket: str, out) -> str:
    """The line that a command ends with."""
    words = [word.format(bucket=bucket, out=out) for word in COMMANDS[command]]
    main, name = (tokenar.cli.train_main, "tokenar-train") if command == "train" else (cli.main, "instructar")
    done = run_here(main, name, *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert not any(secret in line for secret in SECRETS)
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_bucket(command, bucket, tmp_path):
    line = told(command, "s3://no-such-bucket", tmp_path)
    assert line.startswith("error: s3://no-such-bucket/stubs")
    assert line.endswith("there is no bucket 'no-such-bucket'; create it, or correct the address")


@pytest.mark.parametrize("command", FIRST_READS)
def test_wrong_credentials(command, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    line = told(command, bucket, tmp_path)
    assert line.startswith(f"error: {bucket}/stubs")
    assert line.endswith("check the credentials and what they allow")


@pytest.mark.parametrize("command", FIRST_READS)
def test_no_credentials(command, s3_server, tmp_path, monkeypatch):
    buckets.use(monkeypatch, s3_server, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    line = told(command, "s3://some-bucket", tmp_path)
    assert line.startswith("error: s3://some-bucket/stubs")
    assert line.endswith("(Unable to locate credentials); check the credentials and what they allow")


@pytest.mark.parametrize("command", FIRST_READS)
def test_a_server_that_does_not_answer(command, tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        buckets.use(monkeypatch, address, AWS_MAX_ATTEMPTS="1")
        line = told(command, "s3://some-bucket", tmp_path)
    assert line.startswith("error: s3://some-bucket/stubs")
    assert address in line
    assert line.endswith("check the network and the address of the storage")


@pytest.mark.slow
def test_the_commands_of_a_run_do_their_work_in_a_bucket(bucket, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text(config(bucket).model_dump_json())
    run, fs = f"{bucket}/stubs", fsspec.filesystem("s3")
    for words in (
        ("curate", "--config", settings),
        ("status", run),
        ("estimate", run, "--samples", "1000"),
        ("report", *(word.format(bucket=bucket) for word in RUN)),
        ("rerun", "decide", *(word.format(bucket=bucket) for word in RUN)),
    ):
        done = run_here(cli.main, "instructar", *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert {"settings.json", "metrics.json", "dataset.json", "report", "datasets"} <= {
        name.rpartition("/")[2] for name in fs.ls(run, detail=False)
    }
    assert fs.size(f"{run}/report/index.html") > 1000
    everything = b"".join(fs.cat(fs.find(run)).values())
    assert not any(secret.encode() in everything for secret in SECRETS)
