"""What a run's papers prove once its job is over: a fine-tune's commit, a retraining's decision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.lease import Lease
from jobs.store.adapters import commit
from jobs.store.directory import DirectoryStore
from jobs.store.manifest import Base, Data, Draft
from jobs.store.runs import RunStore
from orchestrator.registry.lifecycle import Status
from orchestrator.service.evidence import FRESH_S, found_of
from tests.orchestrator.service.made import run_of
from tests.tiny import safetensors

NOW = 1e10


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """A store with an adapter of the run chat-1."""
    made = DirectoryStore(tmp_path / "store")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(safetensors({"a": (2,)}))
    draft = Draft(
        name="chat",
        kind="lora",
        run="chat-1",
        attempt=1,
        base=Base(path="/models/tiny", digest="a" * 64),
        data=Data(train_sha256="b" * 64, row_order="as they lie", rows=1),
        spec_sha256="c" * 64,
        code_version="0",
        world_size=1,
    )
    commit(made, folder, draft)
    return made


def test_a_fine_tune_that_has_committed_has_finished(store):
    assert found_of(store, run_of(Status.RUNNING)).told.adapter == "chat@v1"


def test_a_retraining_that_has_committed_and_not_decided_has_not_finished(store):
    found = found_of(store, run_of(Status.RUNNING, kind="retrain"))
    assert not found.told.finished


@pytest.mark.parametrize("decision", ["promoted", "kept"])
def test_a_retraining_that_has_decided_has_finished(decision, store):
    RunStore(store, "chat-1").events.append({"event": decision, "adapter": "chat@v1"})
    assert found_of(store, run_of(Status.RUNNING, kind="retrain")).told.adapter == "chat@v1"


def test_a_retraining_without_new_rows_has_finished(tmp_path):
    store = DirectoryStore(tmp_path)
    RunStore(store, "chat-1").events.append({"event": "nothing new"})
    assert found_of(store, run_of(Status.RUNNING, kind="retrain")).told.finished


def _lease(store: DirectoryStore, **changes: object) -> None:
    told = {"time": NOW, "attempt": 1, "ended": False, **changes}
    store.put("runs/chat-1/lease.json", json.dumps(told).encode())


@pytest.mark.parametrize(
    ("lease", "alive"),
    [
        pytest.param({}, True, id="beaten just now"),
        pytest.param({"time": NOW - FRESH_S - 1}, False, id="beaten long ago"),
        pytest.param({"attempt": 2}, False, id="of another attempt"),
        pytest.param({"ended": True}, False, id="ended"),
    ],
)
def test_a_living_job_is_one_whose_lease_is_fresh(lease, alive, tmp_path):
    store = DirectoryStore(tmp_path)
    _lease(store, **lease)
    assert found_of(store, run_of(Status.RUNNING), now=NOW).told.alive is alive


def test_what_the_jobs_write_is_what_the_service_reads(tmp_path):
    store = DirectoryStore(tmp_path)
    with Lease(RunStore(store, "chat-1"), 1):
        pass
    assert not found_of(store, run_of(Status.RUNNING)).told.alive
