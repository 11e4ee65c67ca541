"""What Tune is handed, trial by trial: as many as the budget has, and what had not ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from jobs.plan.preflight import validate_run
from jobs.search.trial_log import TrialLog
from jobs.search.tune.proposals import TrialProposer
from jobs.search.tune.trainable import REQUEST_KEY
from jobs.spec.paths import make_paths_absolute
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.search.specs import a_search


def _proposals(folder: Path, **section: Any) -> tuple[TrialProposer, TrialLog]:
    search = a_search(folder, section)
    diary = TrialLog(RunStore(DirectoryStore(folder / "store"), "search"))
    return TrialProposer(
        search, validate_run(make_paths_absolute(search)), diary, run="search"
    ), diary


def _number(proposed: Any) -> int:
    found: int = proposed[REQUEST_KEY].number
    return found


def test_a_budget_of_trials_is_used_whole_while_some_of_them_run(folder: Path):
    made, diary = _proposals(folder, samples=9, budget={"trials": 4})
    for number in range(2):
        made.suggest(f"t{number}")
        diary.write(diary.records[number], status="running")
    for number in (2, 3):
        ended = number - 2
        diary.write(diary.records[ended], status="done", metric=1.0)
        made.on_trial_complete(f"t{ended}")
        assert _number(made.suggest(f"t{number}")) == number
        diary.write(diary.records[number], status="running")
    assert made.suggest("t4") == Searcher.FINISHED


def test_what_ran_when_the_search_died_is_proposed_again_and_what_ended_is_not(folder: Path):
    made, diary = _proposals(folder, samples=4, budget={"trials": 2})
    first, second = made.suggest("a"), made.suggest("b")
    diary.write(diary.records[_number(first)], status="done", metric=1.0)
    diary.write(diary.records[_number(second)], status="running")
    again, _ = _proposals(folder, samples=4, budget={"trials": 2})
    assert _number(again.suggest("c")) == _number(second)
    assert again.suggest("d") == Searcher.FINISHED


def test_a_rejected_trial_is_a_row_and_takes_nobodys_place(folder: Path):
    space = {"method.rank": {"choice": [64, 2]}}
    made, diary = _proposals(folder, space=space, algorithm="grid")
    assert _number(made.suggest("a")) == 1
    assert [row.status for row in diary.records] == ["rejected", "waiting"]


def test_nothing_is_left_only_when_every_trial_was_proposed_and_ended(folder: Path):
    made, diary = _proposals(folder, samples=2)
    for number in range(2):
        assert made.has_unfinished()
        made.suggest(f"t{number}")
        assert made.has_unfinished()
        diary.write(diary.records[number], status="failed")
    assert not made.has_unfinished()


def test_tpe_ends_when_all_of_a_small_space_was_proposed(folder: Path):
    space = {"method.rank": {"choice": [2, 4]}}
    made, diary = _proposals(folder, space=space, algorithm="tpe", samples=6)
    assert {_number(made.suggest(name)) for name in "ab"} == {0, 1}
    assert made.suggest("c") == Searcher.FINISHED
    assert len(diary.records) == 2
