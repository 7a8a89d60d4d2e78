"""Every way in which a command can end, seen from the shell."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT
from pydantic import BaseModel

from data_schemas import commands
from data_schemas.errors import UserError


class Model(BaseModel):
    number: int


def ended(capsys, monkeypatch, error, arguments=()):
    def command():
        if isinstance(error, BaseException):
            raise error
        error()

    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as left:
        commands.run(command)
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("pool x: gone"), "pool x: gone"),
        (lambda: Model(number="x"), "number: Input should be a valid integer"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x"),
        (MemoryError(), "not enough memory (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "not enough memory"),
        (RecursionError("deep"), "nested too deeply"),
        (UserError("name \x1b[31mred\x07\u202e\nmore"), "name [31mred more"),
        (UserError("root s3://me:hunter2@x: gone"), "root s3://***@x: gone"),
        (UserError("a path " + "x" * 5000 + ": too long"), "xxx: too long"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, error, told):
    code, shown = ended(capsys, monkeypatch, error)
    assert code == 2
    assert shown.startswith("error: ")
    assert told in shown
    assert shown.count("\n") == 1
    assert shown.strip().isprintable()
    assert "hunter2" not in shown
    assert len(shown) < 400


def test_arguments_that_are_not_utf_8(capsys, monkeypatch):
    code, shown = ended(capsys, monkeypatch, lambda: None, [os.fsdecode(b"a\xff")])
    assert code == 2
    assert r"argument a\udcff: not UTF-8 text" in shown


def test_our_own_faults_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        commands.run(lambda: 1 / 0)


TYPER = """
import time, typer
from data_schemas import commands
app = typer.Typer()
@app.command()
def main(lines: int = 0):
    for k in range(lines):
        print(k)
    print("ready", flush=True)
    while not lines:
        time.sleep(0.1)
commands.run(app)
"""


def started(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", TYPER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def test_interrupted_says_so_and_exits_with_130():
    with started() as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=20)
    assert process.returncode == 130
    assert shown == "interrupted\n"


def test_a_reader_that_leaves_is_no_fault():
    with started("--lines", "100000") as process:
        process.stdout.readline()
        process.stdout.close()
        began = time.monotonic()
        shown = process.stderr.read()
        process.wait(timeout=20)
    assert shown == ""
    assert process.returncode == 1
    assert time.monotonic() - began < 20
