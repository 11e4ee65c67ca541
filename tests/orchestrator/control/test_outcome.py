"""The outcome of a run in its store: its adapter, its error and its heartbeat."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import commit, promote
from jobs.store.local import DirectoryStore
from jobs.store.runs.heartbeat import HEARTBEAT
from jobs.store.runs.run_store import RunStore
from orchestrator.control.outcome import HEARTBEAT_TIMEOUT_S, read_outcome
from orchestrator.registry.lifecycle import Status
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.control.builders import make_run

DAY_S = 86400.0
RUN = make_run(Status.RUNNING, attempt=2)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def commit_version(
    store: DirectoryStore, folder: Path, text: str = "weights", **changes: Any
) -> None:
    commit(store, make_adapter_folder(folder, text), make_draft(**changes))


def test_an_empty_store_has_no_outcome(store: DirectoryStore):
    stored = read_outcome(store, RUN)
    assert (stored.manifest, stored.pointer) == (None, None)
    assert (
        not stored.outcome.is_finished and not stored.outcome.alive and stored.outcome.message == ""
    )


def test_an_adapter_of_the_run_finishes_it_whoever_committed_later(
    store: DirectoryStore, tmp_path: Path
):
    commit_version(store, tmp_path / "a", "ours", run=RUN.id)
    commit_version(store, tmp_path / "b", "theirs", run="chat-2")
    promote(store, "chat", 2)
    stored = read_outcome(store, RUN)
    assert stored.outcome.adapter == "chat@v1" and stored.outcome.is_finished
    assert stored.pointer is not None and stored.pointer[0] == 2


def test_an_adapter_of_another_run_does_not_count(store: DirectoryStore, tmp_path: Path):
    commit_version(store, tmp_path / "b", run="chat-2")
    assert not read_outcome(store, RUN).outcome.is_finished


def test_the_adapter_of_a_trial_finishes_its_search(store: DirectoryStore, tmp_path: Path):
    commit_version(store, tmp_path / "b", run="chat-1-t0", search=RUN.id)
    assert read_outcome(store, RUN).outcome.adapter == "chat@v1"


def test_the_last_error_is_read_and_no_new_data_finishes_the_run(store: DirectoryStore):
    events = RunStore(store, RUN.id).events
    events.append({"event": "failed", "why": "first"})
    events.append({"event": "failed", "why": "rank 1: \x1b[31mno memory"})
    stored = read_outcome(store, RUN).outcome
    assert "no memory" in stored.message and "\x1b" not in stored.message and not stored.is_finished
    events.append({"event": "no_new_data"})
    assert read_outcome(store, RUN).outcome.is_finished


@pytest.mark.parametrize(
    ("heartbeat", "age", "alive"),
    [
        pytest.param({"attempt": 2}, 5, True, id="just sent"),
        pytest.param({"attempt": 2}, HEARTBEAT_TIMEOUT_S + 1, False, id="long ago"),
        pytest.param({"attempt": 1}, 5, False, id="by an attempt before"),
        pytest.param({"attempt": 2, "ended": True}, 5, False, id="it ended"),
        pytest.param({"attempt": "two"}, 5, False, id="no number"),
        pytest.param([1, 2], 5, False, id="no heartbeat"),
    ],
)
@pytest.mark.parametrize("writer_ahead_s", [-DAY_S, 0.0, DAY_S], ids=["behind", "right", "ahead"])
def test_a_fresh_heartbeat_of_the_attempt_means_a_live_job_whatever_its_writers_clock_says(
    store: DirectoryStore, heartbeat: Any, age: float, alive: bool, writer_ahead_s: float
):
    if isinstance(heartbeat, dict):
        heartbeat = {"time": time.time() - age + writer_ahead_s, **heartbeat}
    key = f"runs/{RUN.id}/{HEARTBEAT}"
    store.put(key, json.dumps(heartbeat).encode())
    written_at = time.time() - age
    os.utime(store.local_path(key), (written_at, written_at))
    assert read_outcome(store, RUN).outcome.alive is alive


def test_a_heartbeat_that_is_not_json_is_ignored(store: DirectoryStore):
    store.put(f"runs/{RUN.id}/{HEARTBEAT}", b"{" * 5000)
    assert not read_outcome(store, RUN).outcome.alive
