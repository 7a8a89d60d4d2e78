"""Joining the requests of several threads into shared batches, for a model that runs one batch at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(eq=False)
class _Ticket(Generic[In, Out]):
    request: In
    result: Out | Exception | None = None


class Together(Generic[In, Out]):
    """Calls ``ask`` for many threads.

    The thread whose turn it is serves the next ``size`` requests, also those of others.

    While one batch runs, further requests gather, so that the next batch is full. Results are in the order of the
    caller's requests. If a batch fails, its requests are asked one by one, and one that fails alone has its exception
    as result.
    """

    def __init__(self, ask: Callable[[Sequence[In]], Sequence[Out | Exception]], size: int):
        self._ask, self._size = ask, size
        self._turn = threading.Lock()  # held by the thread that serves a batch
        self._door = threading.Lock()  # guards the queue and is held only briefly
        self._waiting: deque[_Ticket[In, Out]] = deque()

    def __call__(self, requests: Sequence[In]) -> list[Out | Exception]:
        tickets: list[_Ticket[In, Out]] = [_Ticket(request) for request in requests]
        with self._door:
            self._waiting.extend(tickets)
        try:
            for ticket in tickets:
                while ticket.result is None:
                    with self._turn:
                        if ticket.result is None:
                            self._serve()
        finally:  # remove the requests of a thread that was interrupted
            with self._door:
                for ticket in tickets:
                    if ticket.result is None and ticket in self._waiting:
                        self._waiting.remove(ticket)
        return [ticket.result for ticket in tickets if ticket.result is not None]

    def _serve(self) -> None:
        with self._door:
            batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
        try:
            self._fill(batch)
        except Exception:
            for ticket in batch:
                self._fill_alone(ticket)
        except BaseException:
            with self._door:
                self._waiting.extendleft(reversed(batch))
            raise

    def _fill(self, batch: Sequence[_Ticket[In, Out]]) -> None:
        results = self._ask([ticket.request for ticket in batch])
        for ticket, result in list(zip(batch, results, strict=True)):
            ticket.result = result

    def _fill_alone(self, ticket: _Ticket[In, Out]) -> None:
        try:
            self._fill([ticket])
        except Exception as error:
            ticket.result = error
