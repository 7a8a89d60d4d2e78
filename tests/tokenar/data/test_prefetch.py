"""Reading ahead: in order, no more than asked for, and no thread is left behind."""

import threading
import time
from itertools import count

import pytest

from data_schemas.errors import UserError
from tokenar.data.prefetch import Prefetched


def test_results_come_in_the_order_of_the_items():
    def slow_at_first(number):
        time.sleep(0.03 if number % 5 == 0 else 0)
        return number * number

    with Prefetched(range(40), slow_at_first, threads=4) as results:
        assert list(results) == [number * number for number in range(40)]
        assert list(results) == []


def test_no_more_is_read_ahead_than_asked():
    begun, freed = [], threading.Semaphore(0)

    def read(number):
        begun.append(number)
        freed.release()
        return number

    with Prefetched(count(), read, threads=2, ahead=3) as results:
        for _ in range(3):
            freed.acquire()
        time.sleep(0.05)
        assert sorted(begun) == [0, 1, 2]
        assert [next(results), next(results)] == [0, 1]
        for _ in range(2):
            freed.acquire()
        time.sleep(0.05)
        assert sorted(begun) == [0, 1, 2, 3, 4]
    assert threading.active_count() < 50


def test_waiting_is_measured():
    def slow(number):
        time.sleep(0.05)
        return number

    with Prefetched(range(3), slow, threads=1) as results:
        list(results)
        assert results.waited >= 0.1


def test_a_mistake_is_raised_at_its_place():
    def read(number):
        if number == 3:
            raise UserError("shard 3")
        return number

    with Prefetched(range(9), read, threads=3) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(UserError, match="shard 3"):
            next(results)


def test_a_mistake_of_the_items_is_raised_too():
    def items():
        yield 1
        raise UserError("cut short")

    with Prefetched(items(), str, threads=2) as results:
        assert next(results) == "1"
        with pytest.raises(UserError, match="cut short"):
            next(results)
        assert list(results) == []


def ended(threads: int) -> bool:
    """Whether no more than so many threads are left, now or soon."""
    for _ in range(500):
        if threading.active_count() <= threads:
            return True
        time.sleep(0.01)
    return False


def test_closing_ends_the_threads():
    def items():
        for number in count():
            yield number
            time.sleep(0.1)

    before = threading.active_count()
    with Prefetched(items(), str, threads=4) as results:
        assert next(results) == "0"
    assert threading.active_count() == before, "at once: the interpreter may end now"


@pytest.mark.slow
def test_closing_ends_the_threads_of_two_in_a_row():
    before, go_on = threading.active_count(), threading.Event()

    def items():
        yield 0
        go_on.wait()
        yield 1

    with Prefetched(items(), str, threads=3) as first, Prefetched(first, repr, threads=1) as second:
        assert next(second) == "'0'"
    go_on.set()
    assert ended(before)
