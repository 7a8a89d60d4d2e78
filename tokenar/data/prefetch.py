"""Reading ahead in threads, in order, with a measure of how long the consumer waits."""

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
    """An iterator over ``read(item)`` for every item, in order, computed ahead of the consumer by ``threads`` threads.

    At most ``ahead`` results are kept (None: twice as many as threads). A separate thread iterates over ``items``
    and is ahead of the consumer, so the position of ``items`` does not tell how many results were consumed. An
    exception of ``read`` or ``items`` is raised where its result would have come. ``waited`` is the time in seconds
    that the consumer has spent waiting.
    """

    def __init__(
        self, items: Iterable[Item], read: Callable[[Item], Result], threads: int, ahead: int | None = None
    ) -> None:
        self.waited = 0.0
        self._free_slots = threading.Semaphore(ahead or 2 * threads)
        self._results: SimpleQueue[Future[Result] | None] = SimpleQueue()
        self._closed = False
        self._pool = ThreadPoolExecutor(threads)
        self._feeder = threading.Thread(target=self._feed, args=(items, read), daemon=True)
        self._feeder.start()

    def _feed(self, items: Iterable[Item], read: Callable[[Item], Result]) -> None:
        try:
            for item in items:
                self._free_slots.acquire()
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
                self._results.put(None)  # for the next call, which must end too
                raise StopIteration
            return result.result()
        finally:
            self.waited += time.monotonic() - begun
            self._free_slots.release()

    def close(self) -> None:
        """Stop reading ahead. Waits for the reads in progress, and up to a second for the thread that iterates."""
        self._closed = True
        self._free_slots.release()
        self._pool.shutdown(cancel_futures=True)
        self._feeder.join(timeout=1)  # a thread inside torch at interpreter exit would abort the process

    def __enter__(self) -> Prefetched[Item, Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
