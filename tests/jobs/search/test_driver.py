"""How a search without a best trial ends."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import InputError, TrainingFailed
from jobs.search.driver import make_no_result_error, stop_unfinished
from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.search.builders import row


def test_the_most_frequent_reason_is_reported_with_its_count():
    rows = [row(0, None, status="failed", reason=why) for why in ("rare.", "often.", "often.")]
    error = make_no_result_error(rows)
    assert isinstance(error, TrainingFailed) and error.exit_code == 1
    assert "often" in str(error) and "2 of them ended for this reason" in str(error)


def test_if_all_trials_were_rejected_the_input_is_invalid_by_its_key():
    why = "search.constraints.memory_gb: 2 exceeds 1"
    error = make_no_result_error(
        [row(number, None, status="rejected", reason=why) for number in range(3)]
    )
    assert isinstance(error, InputError) and error.exit_code == 2
    assert [fault.key for fault in error.faults] == ["search.constraints.memory_gb"]


def test_a_search_that_ended_before_any_trial_says_so():
    assert "no trial was started" in str(make_no_result_error([]))


def test_unfinished_trials_are_stopped_with_the_reason_of_the_budget(tmp_path: Path):
    trial_log = TrialLog(RunStore(DirectoryStore(tmp_path), "search"))
    for number, status in enumerate(("done", "running", "waiting")):
        trial_log.write(row(number, status=status))
    changes = list[TrialRecord]()
    stop_unfinished(trial_log, "the budget of 3 s is spent", changes.append)
    assert [record.number for record in changes] == [1, 2]
    assert [record.status for record in trial_log.records] == ["done", "stopped", "stopped"]
    assert trial_log.records[1].reason == "the budget of 3 s is spent"
