"""Reading ahead of a consumer, in order, while measuring how long it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Prefetched(Generic[Item, Result]):
    """``read(item)`` for every item, in the items' order, worked out ahead by ``threads`` threads.

    At most ``ahead`` results wait (twice the threads if None). ``items`` is walked in a thread of its own, ahead of
    the consumer: what has been consumed, the consumer has to note. What ``read`` or ``items`` raises is raised at its
    place in the order. ``waited`` is the time in seconds that the consumer has spent waiting so far.
    """

    def __init__(
        self, items: Iterable[Item], read: Callable[[Item], Result], threads: int, ahead: int | None = None
    ) -> None:
        self.waited = 0.0
        self._room = threading.Semaphore(ahead or 2 * threads)
        self._results: SimpleQueue[Future[Result] | None] = SimpleQueue()
        self._closed = False
        self._pool = ThreadPoolExecutor(threads)
        self._feeder = threading.Thread(target=self._feed, args=(items, read), daemon=True)
        self._feeder.start()

    def _feed(self, items: Iterable[Item], read: Callable[[Item], Result]) -> None:
        try:
            for item in items:
                self._room.acquire()
                if self._closed:
                    break
                self._results.put(self._pool.submit(read, item))
        except BaseException as error:
            failed: Future[Result] = Future()
            failed.set_exception(error)
            self._results.put(failed)
        self._results.put(None)

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        begun = time.monotonic()
        try:
            result = self._results.get()
            if result is None:
                self._results.put(None)  # the end stays the end
                raise StopIteration
            return result.result()
        finally:
            self.waited += time.monotonic() - begun
            self._room.release()

    def close(self) -> None:
        """Stop reading ahead; what is being read is waited for, ``items`` that are slow to come only a second."""
        self._closed = True
        self._room.release()
        self._pool.shutdown(cancel_futures=True)
        self._feeder.join(timeout=1)  # one that is inside torch when the interpreter ends would abort the process

    def __enter__(self) -> Prefetched[Item, Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
