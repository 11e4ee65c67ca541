"""A run whose store does not answer is not decided, and delays no other."""

from __future__ import annotations

from typing import Any

from jobs.errors import StoreUnreachable
from jobs.store.open import open_store
from orchestrator.registry import run_flags, runs
from orchestrator.registry.lifecycle import Status
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness
from tests.orchestrator.registry.builders import list_runs, make_request


def test_a_run_is_not_decided_while_its_store_is_unreachable(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    control.cluster.forget_all()
    control.open = refuse
    control.reconcile(3)
    assert control.read_status(run) is Status.RUNNING
    control.open = open_store
    control.reconcile()
    assert control.read_status(run) is Status.LOST


def test_an_unreachable_store_does_not_block_other_runs(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    real, unreachable = control.open, run.store

    def open_other_store(url: str) -> Any:
        return refuse(url) if url == unreachable else real(url)

    control.open = open_other_store
    with control.database.write() as session:
        other = runs.add(session, f"{run.id}-other", make_request(store=f"{unreachable}/below"))
        other = runs.move(session, other, Status.SUBMITTED)
        run_flags.mark_acknowledged(session, [other])
    control.reconcile(2)
    assert (
        control.read_status(run) is Status.RUNNING
        and control.read_status(other) is not Status.SUBMITTED
    )


def test_an_unreachable_store_is_tried_once_in_a_pass(control: ControlHarness):
    for _ in range(5):
        control.submit()
    control.reconcile(2)
    control.cluster.forget_all()
    urls: list[str] = []

    def count_opens(url: str) -> Any:
        urls.append(url)
        return refuse(url)

    control.open = count_opens
    control.reconcile()
    assert len(urls) == 1
    control.open = open_store
    control.reconcile()
    with control.database.read() as session:
        assert {run.status for run in list_runs(session)} == {Status.LOST}


def refuse(url: str) -> Any:
    raise StoreUnreachable("the store does not answer")
