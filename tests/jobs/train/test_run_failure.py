"""Why a run's workers ended: what they recorded, and what is said of a lost one."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from jobs.train.cluster.run_failure import delete_failures, make_lost_error, read_failure
from jobs.train.pool.warm_run import WarmOutcome
from jobs.train.worker import CRASHES_PREFIX, FAILURE_FILE


def test_a_recorded_failure_is_read_with_its_exit_code_and_deleted_before_the_next_try(
    tmp_path: Path,
):
    runs = RunStore(DirectoryStore(tmp_path), "run")
    assert read_failure(runs) is None
    report = {"rank": 1, "host": "node-7", "why": "the file is gone.", "exit_code": 2}
    runs.store.put(runs.key(FAILURE_FILE), json.dumps(report).encode())
    runs.store.put(runs.key(f"{CRASHES_PREFIX}0.json"), b"{}")
    failure = read_failure(runs)
    assert failure is not None and failure.exit_code == 2
    assert "worker 1 on node-7: the file is gone" in str(failure)
    delete_failures(runs)
    assert read_failure(runs) is None
    assert not list(runs.store.list(runs.key(CRASHES_PREFIX)))


def test_of_lost_workers_the_one_is_named_that_tells_the_straggler():
    cases = [
        ({1: OSError("killed")}, "worker 1: killed"),
        ({0: OSError("gloo"), 1: OSError("killed")}, "worker 0: gloo"),
        ({0: OSError("gloo"), 1: OSError("Stalled: rank 0")}, "worker 1: Stalled: rank 0"),
        ({2: OSError()}, "worker 2: OSError"),
    ]
    for failures, message in cases:
        assert str(make_lost_error(failures)).startswith(message)


def test_a_lost_warm_worker_counts_against_the_limit_unless_its_machine_was_taken_away():
    failures = {0: OSError("killed")}
    cases = [(WarmOutcome(), 0), (WarmOutcome(failures), 1), (WarmOutcome(failures, True), 0)]
    for outcome, count in cases:
        assert outcome.count == count
