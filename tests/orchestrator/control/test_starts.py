"""The phases of an attempt's start in the service: read with its outcome, counted when it ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from jobs.store.local import DirectoryStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import EVENTS, RunStore, format_run_key
from orchestrator.control.outcome import read_outcome
from orchestrator.registry.lifecycle import Status
from tests.orchestrator.control.builders import make_run
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness
from tests.orchestrator.phase_events import HOSTILE, write_phases


def test_an_outcome_has_the_starts_of_its_events(tmp_path: Path):
    store, run = DirectoryStore(tmp_path), make_run(Status.RUNNING, attempt=2)
    write_phases(RunStore(store, run.id))
    assert [start.attempt for start in read_outcome(store, run).starts] == [1, 2]


@pytest.mark.parametrize("hostile_only", [False, True])
def test_the_phases_of_an_attempt_are_counted_once_when_it_ends(
    control: ControlHarness, tmp_path: Path, hostile_only: bool
):
    run = control.submit()
    control.reconcile()
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    runs = RunStore(open_store(run.store), run.id)
    write_phases(runs)
    if hostile_only:
        runs.store.put(format_run_key(run.id, EVENTS), b"\n".join([*HOSTILE, b""]))
    control.commit(run, tmp_path / "adapter")
    control.reconcile(3)
    assert control.read_status(run) is Status.DONE
    text = generate_latest(control.observer.registry).decode()
    counts = [line for line in text.splitlines() if "slora_run_phase_seconds_count" in line]
    expected = [] if hostile_only else ["base", "first_step", "queue"]
    # Those of the first attempt: the second has not begun, whatever the file says.
    assert sorted(re.findall('phase="(.*)"', "\n".join(counts))) == expected
    assert all(line.endswith(" 1.0") for line in counts)
