"""The worker process: makes the parts that its parent sends, several at the same time if it has several threads.

    python -m pipeline.engines.serve <file descriptor> <threads>

It is a program of its own, so that its device and thread counts are in its environment before anything is imported, and
so that whatever started the parent (a notebook, a Prefect worker) is not imported again. It ends when its parent does.

Messages are pickled between the two halves of this project only: (number, job) comes in, and (number, kind, value) goes
out: "working" with the ids of the samples that the stage is given next, "done" with a PartSummary, "failed" with an
exception.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from threading import Lock

from pipeline.jobs import PartJob
from pipeline.making import make_part


def serve(connection: Connection, threads: int) -> None:
    """Make parts until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    turn = Lock()

    def send(number: int, kind: str, value: object) -> None:
        with turn:
            connection.send((number, kind, value))

    def make(number: int, job: PartJob) -> None:
        def working(ids: Sequence[str]) -> None:
            send(number, "working", tuple(ids))

        try:
            send(number, "done", make_part(job, working))
        except BaseException as error:
            send(number, "failed", portable(error))

    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            pool.submit(partial(make, *connection.recv()))
    except (EOFError, OSError):
        os._exit(0)  # an unfinished part does not exist on disk


def portable(error: BaseException) -> BaseException:
    """The error as another process can have it: with its traceback as a note, and as text if it cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
