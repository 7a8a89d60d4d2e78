"""Lets a run that gets SIGTERM or SIGINT end after the current step, so that it can save a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Remembers the first SIGTERM or SIGINT; ``number`` is the signal's number, None before one came."""

    number: int | None = None

    @property
    def received(self) -> bool:
        return self.number is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal. A second one raises KeyboardInterrupt, which ends the run at once."""
        if self.received:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Catch SIGTERM and SIGINT inside the block. Python allows that in the main thread only; others catch nothing."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
