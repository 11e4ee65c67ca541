"""The guard around an item: what passes, what ends the item, and how it is reported."""

from __future__ import annotations

import logging

import pytest

from jobs.errors import StoreUnreachable
from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.control.bulkheads.item_guard import MAX_WAIT_S, ItemFailure, ItemGuard
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.registry.errors import DatabaseUnreachable, ForbiddenMove, LeaseLost, LostUpdate
from tests.orchestrator.control.clock import SettableClock


class GuardHarness:
    """A guard on a settable clock, and the failures that it reported."""

    def __init__(self) -> None:
        self.clock, self.metrics = SettableClock(0.0), ServiceMetrics()
        self.guard = ItemGuard(self.metrics, clock=self.clock.now)
        self.failures: list[ItemFailure] = []
        self.steps = 0

    def run(self, error: BaseException | None = None, item: str = "chat-1") -> str | None:
        def step() -> str:
            self.steps += 1
            if error is not None:
                raise error
            return "done"

        return self.guard.run("run", item, step, end=self.failures.append)


@pytest.fixture
def harness() -> GuardHarness:
    return GuardHarness()


def test_any_exception_ends_the_item_and_is_counted(harness: GuardHarness):
    bugs = [RecursionError(), MemoryError(), OverflowError(), KeyError("x"), AssertionError()]
    bugs.append(ForbiddenMove("done", "planned", ()))
    for number, bug in enumerate(bugs):
        assert harness.run(bug, f"run-{number}") is None
    assert [failure.error for failure in harness.failures] == [type(bug).__name__ for bug in bugs]
    assert harness.metrics.item_failures.labels("run")._value.get() == len(bugs)


def test_what_is_no_property_of_the_item_passes(harness: GuardHarness):
    outside = [
        ClusterUnreachable("default", "no answer"),
        StoreUnreachable("no answer"),
        DatabaseUnreachable("db", "no answer"),
        LeaseLost("cluster.default", "a", 1),
        LostUpdate("run chat-1", 1, 2),
        KeyboardInterrupt(),
        SystemExit(),
    ]
    for error in outside:
        with pytest.raises(type(error)):
            harness.run(error)
    assert harness.failures == []


def test_the_log_has_the_traceback_and_the_detail_has_no_text_of_the_error(
    harness: GuardHarness, caplog: pytest.LogCaptureFixture
):
    harness.run(ValueError("password hunter2"))
    (failure,) = harness.failures
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info is not None
    assert failure.error_id in record.getMessage() and "hunter2" not in record.getMessage()
    assert failure.error_id in failure.detail and "ValueError" in failure.detail
    assert "hunter2" not in failure.detail


def test_an_item_that_failed_waits_longer_each_time_and_others_do_not_wait(harness: GuardHarness):
    waits = []
    for _ in range(12):
        harness.run(KeyError())
        began = harness.clock.at
        assert harness.run() is None and harness.run(item="other") == "done"
        steps = harness.steps
        while harness.steps == steps:
            harness.clock.at += 1
            harness.run(KeyError())
        waits.append(harness.clock.at - began)
        harness.clock.at += MAX_WAIT_S
    assert waits[:3] == [5, 20, 80] and waits[-1] == MAX_WAIT_S
    assert [failure.count for failure in harness.failures] == list(range(1, 25))


def test_a_success_forgets_the_failures_before_it(harness: GuardHarness):
    harness.run(KeyError())
    harness.clock.at += 10
    assert harness.run() == "done"
    harness.run(KeyError())
    assert [failure.count for failure in harness.failures] == [1, 1]


def test_an_item_that_cannot_be_ended_leaves_the_loop_running(harness: GuardHarness):
    def fail() -> None:
        raise KeyError

    def end(failure: ItemFailure) -> None:
        raise OverflowError

    assert harness.guard.run("run", "chat-1", fail, end=end) is None
