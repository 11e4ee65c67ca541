"""The count of the kill tests detects each failure that is caused on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.store.adapters.operations import commit
from jobs.store.open import open_store
from tests.benchmarks.service_kills.tally import KillTally, count_outcomes
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness


def count_after(control: ControlHarness, folder: Path, accepted: Sequence[str]) -> KillTally:
    return count_outcomes(control.database, control.store, accepted, folder, 0)


@pytest.fixture
def done(control: ControlHarness, tmp_path: Path) -> str:
    """Run a job to its end, with the marks of one process."""
    run = control.submit()
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    control.reconcile()
    control.commit(run, tmp_path / "adapter")
    control.reconcile(2)
    (tmp_path / f"{run.id}.a1.7").write_text("10.0\n11.0\n12.0\n13")
    return run.id


def test_a_successful_run_counts_as_good(control: ControlHarness, tmp_path: Path, done: str):
    tally = count_after(control, tmp_path, [done])
    assert tally.is_good and (tally.runs, tally.attempts, tally.resubmitted) == (1, 1, 0)


def test_an_unfinished_or_unknown_run_counts_as_lost(
    control: ControlHarness, tmp_path: Path, done: str
):
    waiting = control.submit()
    tally = count_after(control, tmp_path, [done, waiting.id, "chat-nobody"])
    assert tally.lost == 2 and not tally.is_good


def test_two_commits_of_one_run_are_counted(control: ControlHarness, tmp_path: Path, done: str):
    other = make_adapter_folder(tmp_path / "other", "other weights")
    commit(open_store(control.store), other, make_draft(run=done, attempt=2))
    tally = count_after(control, tmp_path, [done])
    assert tally.committed_twice == 1 and not tally.is_good


@pytest.mark.parametrize(
    ("beats", "overlaps"), [("12.5\n12.6\n", 0), ("11.5\n14.0\n", 1), ("9.0\n20.0\n", 1)]
)
def test_overlapping_processes_are_counted(
    control: ControlHarness, tmp_path: Path, done: str, beats: str, overlaps: int
):
    (tmp_path / f"{done}.a2.8").write_text(beats)
    tally = count_after(control, tmp_path, [done])
    assert tally.alive_twice == overlaps and tally.is_good == (not overlaps)


def test_a_missing_or_corrupt_adapter_is_counted(
    control: ControlHarness, tmp_path: Path, done: str
):
    store = open_store(control.store)
    (key,) = [key for key in store.list("adapters/chat/v1/") if key.endswith(".safetensors")]
    store.put(key, b"corrupt")
    assert count_after(control, tmp_path, [done]).adapters_lost == 1
    store.delete("adapters/chat/v1/manifest.json")
    assert count_after(control, tmp_path, [done]).adapters_lost == 1
