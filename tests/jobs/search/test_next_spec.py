"""Trials that leave their rates to the rule ask it each for itself; `next.yaml` has numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.plan.preflight import validate_run
from jobs.search.search_artifacts import format_next_spec
from jobs.search.trial_plan import TrialPlanner
from jobs.search.trial_record import TrialRecord
from jobs.spec.load import dump_spec, parse_spec
from jobs.spec.paths import make_paths_absolute
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import SPEC, RunStore
from tests.jobs.search.specs import a_search

DENSITIES = (0.4, 0.8)


def test_the_best_trials_spec_has_the_rates_that_it_used(folder: Path):
    space = {"method.density": {"choice": list(DENSITIES)}}
    search = a_search(folder, {"space": space}, train={"learning_rate": "auto"})
    planner = TrialPlanner(search, validate_run(make_paths_absolute(search)), run="s")
    rates = []
    for number, density in enumerate(DENSITIES):
        config = {"method.density": density}
        record, task = planner.plan(TrialRecord(number, config, run=f"s-t{number}"))
        assert task is not None
        runs = RunStore(DirectoryStore(folder / "store"), record.run)
        assert parse_spec(format_next_spec(search, runs, record)).train.learning_rate == "auto"
        runs.write_text(SPEC, dump_spec(task.request.spec))
        spec = parse_spec(format_next_spec(search, runs, record))
        assert spec.train == task.request.spec.train.model_copy(
            update={"checkpoint_every": spec.train.checkpoint_every}
        )
        assert spec.method.density == density
        assert task.request.plan.rates.by_rule == ("learning_rate", "sparse_learning_rate")
        rates.append(float(task.request.plan.stages[0].learning_rate))
    assert rates[0] == pytest.approx(2 * rates[1], rel=0.05)
