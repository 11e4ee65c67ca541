"""What the store tells of a run: its adapter, its last words, whether its job still beats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import commit, promote
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from orchestrator.control.outcome import HEARTBEAT_TIMEOUT_S, read_outcome
from orchestrator.registry.lifecycle import Status
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.control.builders import make_run

NOW = 1_780_000_000.0
RUN = make_run(Status.RUNNING, attempt=2)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def committed(store: DirectoryStore, folder: Path, text: str = "weights", **changes: Any) -> None:
    commit(store, make_adapter_folder(folder, text), make_draft(**changes))


def test_an_empty_store_tells_nothing(store: DirectoryStore):
    found = read_outcome(store, RUN, now=NOW)
    assert (found.manifest, found.pointer) == (None, None)
    assert not found.outcome.is_finished and not found.outcome.alive and found.outcome.message == ""


def test_an_adapter_of_the_run_is_its_end_whoever_committed_later(
    store: DirectoryStore, tmp_path: Path
):
    committed(store, tmp_path / "a", "ours", run=RUN.id)
    committed(store, tmp_path / "b", "theirs", run="chat-2")
    promote(store, "chat", 2)
    found = read_outcome(store, RUN, now=NOW)
    assert found.outcome.adapter == "chat@v1" and found.outcome.is_finished
    assert found.pointer is not None and found.pointer[0] == 2


def test_an_adapter_of_another_run_is_not_this_one_s(store: DirectoryStore, tmp_path: Path):
    committed(store, tmp_path / "b", run="chat-2")
    assert not read_outcome(store, RUN, now=NOW).outcome.is_finished


def test_a_search_has_what_a_trial_of_it_committed(store: DirectoryStore, tmp_path: Path):
    committed(store, tmp_path / "b", run="chat-1-t0", search=RUN.id)
    assert read_outcome(store, RUN, now=NOW).outcome.adapter == "chat@v1"


def test_its_last_words_are_told_and_that_there_was_nothing_new(store: DirectoryStore):
    events = RunStore(store, RUN.id).events
    events.append({"event": "failed", "why": "first"})
    events.append({"event": "failed", "why": "rank 1: \x1b[31mno memory"})
    found = read_outcome(store, RUN, now=NOW).outcome
    assert "no memory" in found.message and "\x1b" not in found.message and not found.is_finished
    events.append({"event": "nothing new"})
    assert read_outcome(store, RUN, now=NOW).outcome.is_finished


@pytest.mark.parametrize(
    ("lease", "alive"),
    [
        pytest.param({"time": NOW - 5, "attempt": 2}, True, id="beaten just now"),
        pytest.param({"time": NOW - HEARTBEAT_TIMEOUT_S - 1, "attempt": 2}, False, id="long ago"),
        pytest.param({"time": NOW - 5, "attempt": 1}, False, id="by an attempt before"),
        pytest.param({"time": NOW - 5, "attempt": 2, "ended": True}, False, id="it ended"),
        pytest.param({"time": "soon", "attempt": 2}, False, id="no number"),
        pytest.param([1, 2], False, id="no lease"),
    ],
)
def test_whether_its_job_lives_by_its_lease(store: DirectoryStore, lease: Any, alive: bool):
    store.put(f"runs/{RUN.id}/heartbeat.json", json.dumps(lease).encode())
    assert read_outcome(store, RUN, now=NOW).outcome.alive is alive


def test_a_lease_that_is_no_json_is_nobody_s(store: DirectoryStore):
    store.put(f"runs/{RUN.id}/heartbeat.json", b"{" * 5000)
    assert not read_outcome(store, RUN, now=NOW).outcome.alive
