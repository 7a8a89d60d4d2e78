"""Carrying people's decisions over into the run: a curation that a page starts and watches."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from typing import Any

from data_schemas.errors import UserError
from data_schemas.io.text import one_line


class Applying:
    """The curation that takes decisions over: one at a time, a process of its own, whose lines the page shows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=200)

    def begin(self, run_url: str) -> None:
        """Start it. UserError if one is at work."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                raise UserError("a curation is at work already; wait for its end")
            self._lines.clear()
            command = [sys.executable, "-m", "pipeline.cli", "review", run_url, "--apply"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            threading.Thread(target=self._follow, args=(self._process,), daemon=True).start()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            if line.strip():
                self._lines.append(one_line(line, 300))
        process.wait()

    def told(self) -> dict[str, Any]:
        """Its state, idle, running, done or failed, and its last lines."""
        with self._lock:
            if self._process is None:
                return {"state": "idle", "lines": []}
            state = {None: "running", 0: "done"}.get(self._process.poll(), "failed")
            return {"state": state, "lines": list(self._lines)}
