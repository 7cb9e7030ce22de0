"""Tests of faceswap.ahead: the same items in the same order, errors where they belong, and nothing left running."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from faceswap.ahead import ahead


def running() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("count", [1, 3, 50])
def test_the_same_items_in_the_same_order(count: int) -> None:
    assert list(ahead(range(20), count)) == list(range(20))
    assert list(ahead([], count)) == [] and list(ahead([None, None], count)) == [None, None]
    assert running() == 0


def test_it_is_ahead_and_no_further_than_it_may() -> None:
    taken: list[int] = []
    with closing(ahead((taken.append(i) or i for i in range(100)), 3)) as items:
        assert next(items) == 0
        time.sleep(0.1)
        assert 3 <= len(taken) <= 5  # three wait, one waits for room
    assert running() == 0 and len(taken) <= 6


def test_both_work_at_the_same_time() -> None:
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    with closing(ahead(items(), 2)) as found:
        assert next(found) == 1 and second.wait(20)  # while the first is still in use


def test_an_error_comes_where_the_item_would_have_come() -> None:
    class Odd(BaseException):
        pass

    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise Odd

    items = ahead(failing(), 5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(Odd):
        next(items)
    assert running() == 0


def test_closing_closes_what_it_takes_from() -> None:
    closed: list[str] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    items = ahead(ahead(endless(), 2), 2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert closed == ["ahead"] and running() == 0


def test_an_error_of_the_taker_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), closing(ahead(range(10**9), 2)) as items:
        for item in items:
            1 / item
    assert running() == 0
