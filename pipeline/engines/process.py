"""One worker process as its parent sees it, and what is done when it dies or hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from pipeline.jobs import PartJob
from pipeline.making import PartSummary

LOOK = 0.2
"""Seconds between two looks at the clock for samples that take too long."""


class Died(Exception):
    """The process ended while it made a part.

    ``at_work`` are the samples that the stage had been given last. ``code`` and ``reason`` are those of an error row.
    ``guilty`` is False if the part had no samples at work and another had: that part's sample took too long, or may
    have ended the process.
    """

    def __init__(self, at_work: tuple[str, ...], code: str, reason: str, guilty: bool = True):
        super().__init__(reason)
        self.at_work, self.code, self.reason, self.guilty = at_work, code, reason, guilty


@dataclass
class _Order:
    """A part that the process was asked for. ``since`` is when the samples ``at_work`` were begun."""

    job: PartJob
    result: Future[PartSummary] = field(default_factory=Future)
    at_work: tuple[str, ...] = ()
    since: float | None = None

    def late(self, now: float) -> bool:
        limit = self.job.run.config.time_limit
        return self.since is not None and limit > 0 and now - self.since > limit * len(self.at_work)


class WorkerProcess:
    """Runs ``pipeline.engines.serve`` with ``environment`` on top of this process's. It starts with the first part and
    starts anew after it died; ``threads`` parts may be made at the same time.
    """

    def __init__(self, environment: Mapping[str, str], threads: int):
        self.environment, self.threads = dict(environment), threads
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._orders: dict[int, _Order] = {}
        self._number = 0

    def make(self, job: PartJob) -> PartSummary:
        """Have the process make a part. Raises what ``make_part`` raises, or Died."""
        order = _Order(job)
        with self._lock:
            if self._process is None:
                self._start()
            assert self._connection is not None
            self._number += 1
            self._orders[self._number] = order
            with suppress(OSError):  # it has just died; the thread that listens to it says so
                self._connection.send((self._number, job))
        return order.result.result()

    def close(self) -> None:
        """End the process. Parts at work are given up; they do not exist until they are whole."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "pipeline.engines.serve", str(theirs.fileno()), str(self.threads)]
        # The child finds the user's own stages, and the project where it is not installed, as this process does.
        path = os.pathsep.join(dict.fromkeys(entry or os.getcwd() for entry in sys.path))
        environment = {**os.environ, "PYTHONPATH": path, **self.environment}
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._connection = Connection(ours.detach())
        listening = threading.Thread(target=self._listen, args=(self._process, self._connection), daemon=True)
        listening.start()

    def _listen(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        """Take the process's messages until it ends, and stop it if a sample takes too long."""
        late: _Order | None = None
        while late is None:
            try:
                if connection.poll(LOOK):
                    self._take(*connection.recv())
            except (EOFError, OSError):
                break
            now = time.monotonic()
            late = next((order for order in list(self._orders.values()) if order.late(now)), None)
        if late is not None:
            process.kill()
        self._bury(process, connection, late)

    def _take(self, number: int, kind: str, value: Any) -> None:
        order = self._orders[number]
        if kind == "working":
            order.at_work, order.since = value, time.monotonic() if value else None
            return
        del self._orders[number]
        if kind == "done":
            order.result.set_result(value)
        else:
            order.result.set_exception(value)

    def _bury(self, process: subprocess.Popen[bytes], connection: Connection, late: _Order | None) -> None:
        """After the process has ended: make way for a new one, and tell those who wait for a part."""
        status = process.wait()
        with self._lock:
            connection.close()
            self._process = self._connection = None
            orders, self._orders = self._orders, {}
        for order in orders.values():
            if late is None:
                guilty = bool(order.at_work) or not any(other.at_work for other in orders.values())
                reason = f"the process that worked on it ended with {_told(status)}"
                died = Died(order.at_work, "crashed", reason, guilty)
            elif order is late:
                limit = f"{order.job.run.config.time_limit:g} s"
                died = Died(order.at_work, "timed_out", f"it took longer than time_limit allows ({limit})")
            else:
                died = Died((), "crashed", "stopped with another part", guilty=False)
            order.result.set_exception(died)


def _told(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
