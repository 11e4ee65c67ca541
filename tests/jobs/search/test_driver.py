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


def test_the_commonest_reason_is_told_and_how_often_it_was_so():
    rows = [row(0, None, status="failed", reason=why) for why in ("rare.", "often.", "often.")]
    wrong = make_no_result_error(rows)
    assert isinstance(wrong, TrainingFailed) and wrong.exit_code == 1
    assert "often" in str(wrong) and "in 2 of them" in str(wrong)


def test_trials_that_were_all_rejected_are_wrong_input_by_its_key():
    why = "search.constraints.memory_gb: 2 is above 1"
    wrong = make_no_result_error(
        [row(number, None, status="rejected", reason=why) for number in range(3)]
    )
    assert isinstance(wrong, InputError) and wrong.exit_code == 2
    assert [fault.key for fault in wrong.faults] == ["search.constraints.memory_gb"]


def test_a_search_that_was_ended_before_any_trial_says_so():
    assert "no trial was started" in str(make_no_result_error([]))


def test_what_the_budget_lets_nobody_end_is_stopped_with_its_reason(tmp_path: Path):
    diary = TrialLog(RunStore(DirectoryStore(tmp_path), "search"))
    for number, status in enumerate(("done", "running", "waiting")):
        diary.write(row(number, status=status))
    said = list[TrialRecord]()
    stop_unfinished(diary, "the budget of 3 s is spent", said.append)
    assert [found.number for found in said] == [1, 2]
    assert [found.status for found in diary.records] == ["done", "stopped", "stopped"]
    assert diary.records[1].reason == "the budget of 3 s is spent"
