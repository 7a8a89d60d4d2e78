"""Seconds of a GPU, where several parts are made on it at the same time."""

from __future__ import annotations

import threading
import time


class SharedTime:
    """Time that passes once for all who are at work: while three are, each of them is given a third of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work, self._each, self._since = 0, 0.0, 0.0

    def _turn(self, change: int) -> float:
        with self._lock:
            now = time.perf_counter()
            if self._at_work:
                self._each += (now - self._since) / self._at_work
            self._at_work, self._since = self._at_work + change, now
            return self._each

    def begin(self) -> float:
        """One more is at work. What is returned is given to ``end``."""
        return self._turn(1)

    def end(self, began: float) -> float:
        """One is done: its share of the time since ``began``, in seconds."""
        return self._turn(-1) - began


GPU = SharedTime()
"""Of this process's GPU."""
