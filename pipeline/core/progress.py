"""Progress of one stage, counted in parts."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from data_schemas.progress import Progress, tell


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
