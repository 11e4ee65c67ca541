"""Loops that hang are found, and a registry that cannot be written."""

from __future__ import annotations

import threading

import pytest

from orchestrator.control.bulkheads.loop_health import EXPECTED_ITEM_S, LoopHealth
from orchestrator.control.bulkheads.write_probe import CACHE_S, MAX_ANSWER_AGE_S, WriteProbe
from orchestrator.registry.errors import DatabaseRefused, DatabaseUnreachable
from tests.orchestrator.control.clock import SettableClock


def test_a_loop_is_late_after_two_intervals_and_an_item():
    clock = SettableClock(0.0)
    health = LoopHealth({"fast": 1.0, "slow": 600.0}, clock=clock.now)
    clock.at = EXPECTED_ITEM_S + 2
    assert health.find_late_loops() == {}
    clock.at += 1
    assert health.find_late_loops() == {"fast": EXPECTED_ITEM_S + 3}
    health.beat("fast")
    assert health.find_late_loops() == {} and health.measure_age("slow") == EXPECTED_ITEM_S + 3


@pytest.mark.parametrize("error", [DatabaseUnreachable, DatabaseRefused])
def test_a_failed_write_is_repeated_after_a_while(error: type[Exception]):
    clock, failures = SettableClock(100.0), [error("db", "read only"), None]
    writes = []

    def write() -> None:
        writes.append(clock.at)
        if (failure := failures.pop(0)) is not None:
            raise failure

    probe = WriteProbe(write, clock=clock.now)
    assert not probe.check() and not probe.check()
    clock.at += CACHE_S
    assert probe.check() and probe.check() and writes == [100.0, 100.0 + CACHE_S]


def test_only_one_caller_waits_for_a_write_that_hangs():
    clock = SettableClock(0.0)
    started, released = threading.Event(), threading.Event()
    hangs = False

    def write() -> None:
        if hangs:
            started.set()
            released.wait(30)

    probe = WriteProbe(write, clock=clock.now)
    assert probe.check()
    hangs, clock.at = True, CACHE_S
    thread = threading.Thread(target=probe.check)
    thread.start()
    assert started.wait(30)
    assert probe.check(), "the last answer is young"
    clock.at = MAX_ANSWER_AGE_S
    assert not probe.check()
    released.set()
    thread.join(30)
    assert probe.check()
