"""The service moves the pointer for a retraining, once, whatever dies in between."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnreachable
from jobs.store.adapters.operations import commit, promote, read_pointer, rollback
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import adapters
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.values import Run
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.control.builders import make_spec, open_project
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness


class UnreachableOnce:
    """A store that does not answer the first write of a pointer."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self.failures = store, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: bytes, **options: Any) -> str:
        if key.endswith("/current") and not self.failures:
            self.failures += 1
            raise StoreUnreachable("the store does not answer")
        return self._store.put(key, data, **options)


class Retrained:
    """A retraining of the project `lab` whose job has committed chat@v2; chat@v1 was there."""

    def __init__(self, control: ControlHarness, folder: Path) -> None:
        self.control = control
        open_project(control.database, "lab")
        first = self.submit("finetune")
        control.reconcile()
        control.commit(first, make_adapter_folder(folder / "one"))
        self.end_job(first)
        self.run = self.submit("retrain", retrain={})
        self.store = open_store(self.run.store)
        control.reconcile()
        control.commit(self.run, make_adapter_folder(folder / "two", "better"))

    def submit(self, kind: Any, **section: Any) -> Run:
        spec = make_spec(self.control.store, **section)
        request = SubmitRequest(kind=kind, spec=spec, project="lab")
        return self.control.intake.accept(request)[0]

    def decide(self, event: str = "promotion_requested", **facts: Any) -> None:
        """Record the decision of the job."""
        decision = {"event": event, "time": time.time(), "adapter": "chat@v2"}
        RunStore(self.store, self.run.id).events.append({**decision, **facts})

    def end_job(self, run: Run) -> Run:
        self.control.cluster.play(f"{run.id}-a1", SUCCEEDED)
        self.control.reconcile()
        return self.control.read(run)

    @property
    def current(self) -> tuple[int, int]:
        """The version of the pointer, and the number of its moves."""
        pointer = read_pointer(self.store, "chat")
        assert pointer is not None
        return pointer.version, len(pointer.moves)

    def read_recorded(self, database: Database) -> int | None:
        with database.read() as session:
            pointer = adapters.get_pointer(session, self.run.store, "chat")
            return None if pointer is None else pointer.version


@pytest.fixture
def retrained(control: ControlHarness, tmp_path: Path) -> Retrained:
    return Retrained(control, tmp_path)


def test_the_current_version_is_pinned_before_the_job_starts(retrained: Retrained):
    assert retrained.current == (1, 1)


def test_a_requested_promotion_is_made_by_the_service(retrained: Retrained):
    retrained.decide(expected_move=1)
    ended = retrained.end_job(retrained.run)
    assert (ended.status, ended.detail) == (Status.DONE, "promoted chat@v2")
    assert retrained.current == (2, 2)
    assert retrained.read_recorded(retrained.control.database) == 2


@pytest.mark.parametrize(
    "decision",
    [
        {"event": "not_promoted", "why": "it is worse"},
        {"expected_move": 1, "adapter": "chat@v1"},
        {"expected_move": "1"},
        {"expected_move": True},
        {},
    ],
)
def test_without_a_valid_request_the_pointer_stays(retrained: Retrained, decision: dict[str, Any]):
    retrained.decide(**{"expected_move": [], **decision})
    assert retrained.end_job(retrained.run).status is Status.DONE
    assert retrained.current == (1, 1)


def test_a_pointer_that_moved_meanwhile_is_not_moved_again(retrained: Retrained, tmp_path: Path):
    other = make_draft(run="other")
    commit(retrained.store, make_adapter_folder(tmp_path / "three", "other"), other)
    promote(retrained.store, "chat", 3)
    retrained.decide(expected_move=1)
    ended = retrained.end_job(retrained.run)
    assert ended.status is Status.DONE
    assert ended.detail.startswith("not promoted: chat: current has moved to v3 meanwhile")
    assert retrained.current == (3, 2)


def test_a_service_that_dies_before_the_move_makes_it_later(retrained: Retrained):
    retrained.decide(expected_move=1)
    flaky = UnreachableOnce(retrained.store)
    retrained.control.open = lambda url: flaky  # type: ignore[assignment,return-value]
    assert retrained.end_job(retrained.run).status is Status.PUBLISHING
    assert retrained.current == (1, 1) and flaky.failures == 1
    retrained.control.reconcile()
    assert retrained.control.read_status(retrained.run) is Status.DONE
    assert retrained.current == (2, 2)


def test_a_service_that_died_after_the_move_does_not_repeat_it(retrained: Retrained):
    retrained.decide(expected_move=1)
    promote(retrained.store, "chat", 2)
    rollback(retrained.store, "chat")
    ended = retrained.end_job(retrained.run)
    assert ended.status is Status.DONE
    assert ended.detail == "promoted chat@v2; current has moved to v1 since"
    assert retrained.current == (1, 3)


def test_the_pointers_of_other_projects_stay(retrained: Retrained):
    retrained.decide(expected_move=1)
    retrained.end_job(retrained.run)
    assert read_pointer(open_store(retrained.control.store), "chat") is None
