"""Turns: in the order of coming, none lost by who gave up."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from orchestrator.registry.turns import Turns


def waiting(turns: Turns, count: int) -> None:
    while len(turns._waiting) < count:
        pass


def test_whoever_waits_longest_is_next():
    turns, order = Turns(), list[int]()

    def work(number: int) -> None:
        assert turns.take(20)
        order.append(number)
        turns.give()

    assert turns.take(0)
    with ThreadPoolExecutor(5) as pool:
        for number in range(5):
            pool.submit(work, number)
            waiting(turns, number + 1)
        turns.give()
    assert order == [0, 1, 2, 3, 4]


def test_one_that_gave_up_is_passed_over():
    turns, taken = Turns(), threading.Event()
    assert turns.take(0)
    assert not turns.take(0.01)

    def work() -> None:
        assert turns.take(20)
        taken.set()

    thread = threading.Thread(target=work)
    thread.start()
    waiting(turns, 1)
    turns.give()
    assert taken.wait(20)
    thread.join()
    assert not turns.take(0)
    turns.give()
    assert turns.take(0)
