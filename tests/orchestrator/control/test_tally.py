"""The count of the kill tests itself: each thing that it counts, done on purpose, is counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.store.adapters.operations import commit
from jobs.store.open import open_store
from tests.benchmarks.service_kills.tally import KillTally, count
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness


def count(control: ControlHarness, folder: Path, accepted: Sequence[str]) -> KillTally:
    return count(control.database, control.store, accepted, folder, 0)


@pytest.fixture
def done(control: ControlHarness, tmp_path: Path) -> str:
    """A run that went well, and left the marks of one life."""
    run = control.submit()
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    control.reconcile()
    control.commit(run, tmp_path / "adapter")
    control.reconcile(2)
    (tmp_path / f"{run.id}.a1.7").write_text("10.0\n11.0\n12.0\n13")
    return run.id


def test_a_run_that_went_well_counts_as_good(control: ControlHarness, tmp_path: Path, done: str):
    found = count(control, tmp_path, [done])
    assert found.is_good and (found.runs, found.attempts, found.resubmitted) == (1, 1, 0)


def test_a_run_that_is_not_done_or_not_known_is_lost(
    control: ControlHarness, tmp_path: Path, done: str
):
    waiting = control.submit()
    found = count(control, tmp_path, [done, waiting.id, "chat-nobody"])
    assert found.lost == 2 and not found.is_good


def test_two_commits_of_one_run_are_counted(control: ControlHarness, tmp_path: Path, done: str):
    other = make_adapter_folder(tmp_path / "other", "other weights")
    commit(open_store(control.store), other, make_draft(run=done, attempt=2))
    found = count(control, tmp_path, [done])
    assert found.committed_twice == 1 and not found.is_good


@pytest.mark.parametrize(
    ("beats", "twice"), [("12.5\n12.6\n", 0), ("11.5\n14.0\n", 1), ("9.0\n20.0\n", 1)]
)
def test_two_lives_that_overlap_are_counted(
    control: ControlHarness, tmp_path: Path, done: str, beats: str, twice: int
):
    (tmp_path / f"{done}.a2.8").write_text(beats)
    found = count(control, tmp_path, [done])
    assert found.alive_twice == twice and found.is_good == (not twice)


def test_an_adapter_that_is_gone_or_spoilt_is_counted(
    control: ControlHarness, tmp_path: Path, done: str
):
    store = open_store(control.store)
    (key,) = [key for key in store.list("adapters/chat/v1/") if key.endswith(".safetensors")]
    store.put(key, b"spoilt")
    assert count(control, tmp_path, [done]).adapters_lost == 1
    store.delete("adapters/chat/v1/manifest.json")
    assert count(control, tmp_path, [done]).adapters_lost == 1
