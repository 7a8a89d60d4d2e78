"""Progress of one stage, counted in parts: shown on stderr, and as a line of JSON for each part in Python's logging."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from data_schemas.errors import UserError
from data_schemas.progress import Progress, tell

PARTS = logging.getLogger("pipeline.parts")
"""Gets a line for each finished part, at the level INFO. Nobody hears it until somebody adds a handler."""


def log_parts_to(path: str) -> None:
    """Append a line for each finished part to a file, from now on. UserError if it cannot be written."""
    try:
        # A pipe without a reader must not make the command wait.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:  # ValueError: a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--log-file {path}: cannot be written ({reason}); give a file in a folder that is there"
        ) from error
    os.set_blocking(file, True)
    PARTS.addHandler(_LogFile(path, os.fdopen(file, "w", encoding="utf-8")))
    PARTS.setLevel(logging.INFO)


class _LogFile(logging.StreamHandler):
    """Says once that the file cannot be written any more, where logging would print a traceback for every line."""

    def __init__(self, path: str, file: TextIO):
        super().__init__(file)
        self.path = path

    def handleError(self, record: logging.LogRecord) -> None:  # logging's name
        error = sys.exception()
        PARTS.removeHandler(self)
        with suppress(OSError):  # it writes what it still holds
            self.stream.close()
        reason = getattr(error, "strerror", None) or str(error)
        tell(f"--log-file {self.path}: {reason}; no more lines are written to it")


def _line(summary: Any) -> str:
    """A part's PartSummary as one JSON object."""
    samples, seconds = sum(summary.counts.values()), summary.seconds
    return json.dumps({
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "stage": summary.stage, "part": summary.part,
        "cached": summary.cached, "counts": summary.counts, "seconds": seconds, "gpu_seconds": summary.gpu_seconds,
        "samples_per_second": round(samples / seconds, 3) if seconds else None,
    })  # fmt: skip


class StageProgress:
    """Shows the progress of a stage: a bar on a terminal, otherwise one line at the end.

    Use as ``with StageProgress("matting", 6) as progress`` and call ``progress.advance(summary)`` for each finished
    part.
    """

    def __init__(self, stage: str, parts: int):
        self.stage, self.parts, self.done = stage, parts, 0
        self.samples = self.failed = self.cached = 0
        self._began = time.perf_counter()
        self._bar = Progress(f"{stage:<11}", parts, show=sys.stderr.isatty())

    def advance(self, summary: Any) -> None:
        """Count a finished part by its PartSummary."""
        self.done += 1
        self.samples += sum(summary.counts.values())
        self.failed += summary.counts.get("error", 0)
        self.cached += summary.cached
        if PARTS.isEnabledFor(logging.INFO):
            PARTS.info(_line(summary))
        self._bar.advance()

    def line(self, text: str) -> None:
        """Write a separate line on stderr, above the bar if there is one."""
        (self._bar.line if self._bar.show else tell)(f"{self.stage.strip()}: {text}")

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, trace)
        if kind is None and not sys.stderr.isatty():
            seconds = time.perf_counter() - self._began
            note = f", {self.failed} failed" if self.failed else ""
            print(
                f"{self.stage:<11} {self.done}/{self.parts} parts ({self.cached} from the cache), "
                f"{self.samples} samples{note}, {seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )
