"""Progress of one stage: a bar with rate and time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Progress:
    """``with Progress("matting", 6) as progress: progress.advance(summary)`` for each finished part."""

    def __init__(self, stage: str, parts: int):
        self.stage, self.parts, self.done = stage, parts, 0
        self.samples = self.failed = self.cached = 0
        self._began = time.perf_counter()
        self._bar = tqdm(total=parts, desc=f"{stage:<11}", unit="part", disable=not sys.stderr.isatty())

    def advance(self, summary: Any) -> None:
        self.done += 1
        self.samples += sum(summary.counts.values())
        self.failed += summary.counts.get("error", 0)
        self.cached += summary.cached
        self._bar.update()

    def line(self, text: str) -> None:
        """A line of its own on stderr, above the bar if there is one."""
        self._bar.write(f"{self.stage.strip()}: {text}", file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if kind is None and not sys.stderr.isatty():
            seconds = time.perf_counter() - self._began
            note = f", {self.failed} failed" if self.failed else ""
            print(
                f"{self.stage:<11} {self.done}/{self.parts} parts ({self.cached} from the cache), "
                f"{self.samples} samples{note}, {seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )
