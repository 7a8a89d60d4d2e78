"""One case after the other, each the real command in a process of its own, watched from outside.

What the commands import is imported once; each case is then a fork, so that two hundred of them take minutes. A case
holds if the command ends in time, within the memory, without a traceback, with the code that is right, and names what
was at fault in one line.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import stat
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 20
MEMORY = 1.5e9
"""Bytes that a case may take over what its imports do."""
GUARD = 8 * 1024**3
"""Address space over that of the imports: the machine is kept whole if a case runs away."""


@dataclass(frozen=True)
class Case:
    """``arguments`` and ``told`` may name the places in Good and ``{here}``, the case's own folder.

    ``told`` must stand in the line of complaint (any of its alternatives, parted by "|"), ``hidden`` nowhere.
    ``codes`` are those that it may end with. With ``row`` the text stands in an error row of the run's references.
    ``clean`` holds that a command that refuses leaves the case's folder as it was, to the byte. ``environment`` are
    variables that the command finds.
    """

    name: str
    command: str
    arguments: Sequence[str]
    told: str
    make: Callable[[Path], None] = lambda here: None
    codes: tuple[int, ...] = (2,)
    row: str | None = None
    hidden: str = "\0"
    clean: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """What was seen of a command."""

    code: int | None
    out: str
    seconds: float
    memory: float


def entries() -> dict[str, Callable[[], None]]:
    """Every command's entry point; all that they import late is imported here."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    import flows.playground
    import pipeline.checks.inputs
    import pipeline.cli
    import pipeline.exchange.folders_in
    import pipeline.exchange.hub
    import pipeline.exchange.pairs_in
    import pipeline.exchange.push
    import pipeline.pages.explore
    import pipeline.pages.review
    import pipeline.report.calibration.page
    import pipeline.report.results
    import tokenar.attention.report
    import tokenar.cli
    import tokenar.data.encode
    import tokenar.evaluate.run
    import tokenar.export
    import tokenar.playground.studio
    import tokenar.sample.sampler
    import tokenar.train.loop

    def quickstart() -> None:
        from flows.quickstart import main

        main()

    return {
        "instructar": pipeline.cli.main,
        "encode": tokenar.cli.encode_main,
        "train": tokenar.cli.train_main,
        "sample": tokenar.cli.sample_main,
        "eval": tokenar.cli.eval_main,
        "attention": tokenar.cli.attention_main,
        "import": tokenar.cli.import_main,
        "export": tokenar.cli.export_main,
        "playground": flows.playground.main,
        "quickstart": quickstart,
    }


def run(
    command: Callable[[], None],
    arguments: Sequence[str | bytes],
    folder: Path,
    seconds: float = SECONDS,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """A command in a fork of this process, in ``folder``; killed when its time is up."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = folder / "shown.txt"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(command, arguments, folder, shown, environment or {})
    code: int | None = None
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - began > seconds:
            os.killpg(child, signal.SIGKILL)
            _, _, used = os.wait4(child, 0)
            break
        time.sleep(0.01)
    took = time.monotonic() - began
    text = shown.read_text(errors="replace") if shown.exists() else ""
    return Ended(code, text, took, used.ru_maxrss * 1024 - _resident())


def _child(
    command: Callable[[], None],
    arguments: Sequence[str | bytes],
    folder: Path,
    shown: Path,
    environment: Mapping[str, str],
) -> None:
    from huggingface_hub import constants

    code = 1
    try:
        os.setsid()
        os.environ.update(environment)
        constants.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE") == "1"  # read when it was imported
        output = os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        limit = _address_space() + GUARD
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.argv = ["command", *map(os.fsdecode, arguments)]
        command()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")


def faults(case: Case, ended: Ended, places: dict[str, str]) -> list[str]:
    """What is wrong with how a command ended; empty if nothing is."""
    found = []
    if ended.code is None:
        found.append(f"did not end within {SECONDS} s")
    elif ended.code not in case.codes:
        found.append(f"exit code {ended.code}, not {' or '.join(map(str, case.codes))}")
    if ended.memory > MEMORY:
        found.append(f"{ended.memory / 1e9:.1f} GB of memory")
    if "Traceback" in ended.out:
        found.append("a traceback")
    if case.hidden.format(**places) in ended.out:
        found.append("shows what it must hide")
    lines = [line for line in ended.out.splitlines() if line.startswith("error: ")]
    usage = "─ Error ─" in ended.out or "usage: " in ended.out
    if ended.code == 2 and not usage and len(lines) != 1:
        found.append(f"{len(lines)} lines of complaint")
    said = " ".join(ended.out.split()) if usage or ended.code != 2 else " ".join(lines)
    wanted = [part.format(**places) for part in case.told.split("|")]
    if not any(part in said for part in wanted):
        found.append(f"does not say {' or '.join(wanted)}")
    if any(ord(character) < 32 and character not in "\n\r\t" for character in ended.out):
        found.append("sends control characters to the terminal")
    if case.row is not None and not _in_rows(Path(places["here"]), case.row.format(**places)):
        found.append(f"no error row says {case.row}")
    return found


def contents(folder: Path) -> dict[str, str]:
    """What lies in a folder, by path: kind and, of a file that is not huge, a digest of its bytes."""
    found = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            status = path.lstat()
            found[str(path.relative_to(folder))] = f"{stat.S_IFMT(status.st_mode)} " + (
                hashlib.sha256(path.read_bytes()).hexdigest()
                if stat.S_ISREG(status.st_mode) and status.st_size < 10**7
                else ""
            )
    return found


def left(case: Case, ended: Ended, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What a command did to its case's folder and must not have done."""
    found = [f"ran what it was given: {name}" for name in after if Path(name).name == "executed"]
    found += [f"left {name} behind" for name in after if name.endswith(".tmp")]
    if case.clean and ended.code == 2 and not found:
        names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        found += [f"changed {name}" for name in sorted(names - {"shown.txt"})]
    return found


def _in_rows(folder: Path, text: str) -> bool:
    import pyarrow.parquet as pq

    rows = [
        row for path in folder.glob("runs/*/references/*/pool-*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    return any(text in str(row["error_message"]) for row in rows if row["status"] == "error")


def check(case: Case, commands: dict[str, Callable[[], None]], good: dict[str, str], root: Path) -> list[str]:
    """Make a case's files, run its command and judge it; what was shown is added to the faults."""
    here = root / uuid.uuid4().hex  # a name that says nothing: what is told must come from the command
    here.mkdir(parents=True)
    places = good | {"here": str(here)}
    case.make(here)
    arguments = [a if isinstance(a, bytes) else a.format(**places) for a in case.arguments]
    words = case.command.split()
    before = contents(here)
    ended = run(commands[words[0]], [*words[1:], *arguments], here, environment=case.environment)
    found = faults(case, ended, places) + left(case, ended, before, contents(here))
    shutil.rmtree(here, ignore_errors=True)
    return [*found, *(f"    {line[:400]}" for line in ended.out.splitlines()[-6:])] if found else []
