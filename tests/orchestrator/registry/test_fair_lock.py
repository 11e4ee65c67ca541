"""Turns: in the order of coming, none lost by who gave up."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from orchestrator.registry.fair_lock import FairLock


def waiting(turns: FairLock, count: int) -> None:
    while len(turns._waiters) < count:
        pass


def test_whoever_waits_longest_is_next():
    turns, order = FairLock(), list[int]()

    def work(number: int) -> None:
        assert turns.acquire(20)
        order.append(number)
        turns.release()

    assert turns.acquire(0)
    with ThreadPoolExecutor(5) as pool:
        for number in range(5):
            pool.submit(work, number)
            waiting(turns, number + 1)
        turns.release()
    assert order == [0, 1, 2, 3, 4]


def test_one_that_gave_up_is_passed_over():
    turns, taken = FairLock(), threading.Event()
    assert turns.acquire(0)
    assert not turns.acquire(0.01)

    def work() -> None:
        assert turns.acquire(20)
        taken.set()

    thread = threading.Thread(target=work)
    thread.start()
    waiting(turns, 1)
    turns.release()
    assert taken.wait(20)
    thread.join()
    assert not turns.acquire(0)
    turns.release()
    assert turns.acquire(0)
