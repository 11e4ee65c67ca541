"""The trials that Tune gets: as many as the budget allows, and those that have not ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from jobs.plan.preflight import validate_run
from jobs.search.trial_log import TrialLog
from jobs.search.trial_plan import TrialPlanner
from jobs.search.tune.proposals import TrialProposer
from jobs.search.tune.trial_task import TASK_KEY
from jobs.spec.paths import make_paths_absolute
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.search.specs import a_search


def make_proposer(folder: Path, **section: Any) -> tuple[TrialProposer, TrialLog]:
    search = a_search(folder, section)
    trial_log = TrialLog(RunStore(DirectoryStore(folder / "store"), "search"))
    planner = TrialPlanner(search, validate_run(make_paths_absolute(search)), run="search")
    return TrialProposer(search, planner, trial_log, run="search"), trial_log


def number_of(proposed: Any) -> int:
    number: int = proposed[TASK_KEY].number
    return number


def test_a_budget_of_trials_is_used_up_while_some_of_them_run(folder: Path):
    proposer, trial_log = make_proposer(folder, samples=9, budget={"trials": 4})
    for number in range(2):
        proposer.suggest(f"t{number}")
        trial_log.write(trial_log.records[number], status="running")
    for number in (2, 3):
        ended = number - 2
        trial_log.write(trial_log.records[ended], status="done", metric=1.0)
        proposer.on_trial_complete(f"t{ended}")
        assert number_of(proposer.suggest(f"t{number}")) == number
        trial_log.write(trial_log.records[number], status="running")
    assert proposer.suggest("t4") == Searcher.FINISHED


def test_after_a_crash_running_trials_are_proposed_again_and_ended_ones_are_not(folder: Path):
    proposer, trial_log = make_proposer(folder, samples=4, budget={"trials": 2})
    first, second = proposer.suggest("a"), proposer.suggest("b")
    trial_log.write(trial_log.records[number_of(first)], status="done", metric=1.0)
    trial_log.write(trial_log.records[number_of(second)], status="running")
    again, _ = make_proposer(folder, samples=4, budget={"trials": 2})
    assert number_of(again.suggest("c")) == number_of(second)
    assert again.suggest("d") == Searcher.FINISHED


def test_a_rejected_trial_is_recorded_and_does_not_count(folder: Path):
    space = {"method.rank": {"choice": [64, 2]}}
    proposer, trial_log = make_proposer(folder, space=space, algorithm="grid")
    assert number_of(proposer.suggest("a")) == 1
    assert [row.status for row in trial_log.records] == ["rejected", "waiting"]


def test_a_search_is_unfinished_until_every_trial_was_proposed_and_has_ended(folder: Path):
    proposer, trial_log = make_proposer(folder, samples=2)
    for number in range(2):
        assert proposer.has_unfinished()
        proposer.suggest(f"t{number}")
        assert proposer.has_unfinished()
        trial_log.write(trial_log.records[number], status="failed")
    assert not proposer.has_unfinished()


def test_tpe_ends_when_all_of_a_small_space_was_proposed(folder: Path):
    space = {"method.rank": {"choice": [2, 4]}}
    proposer, trial_log = make_proposer(folder, space=space, algorithm="tpe", samples=6)
    assert {number_of(proposer.suggest(name)) for name in "ab"} == {0, 1}
    assert proposer.suggest("c") == Searcher.FINISHED
    assert len(trial_log.records) == 2
