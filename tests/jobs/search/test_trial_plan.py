"""The plan before a trial: what breaks a constraint is rejected with the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.plan.preflight import validate_run
from jobs.search.trial_plan import PlannedTrial, plan_trial
from jobs.search.trial_record import TrialRecord
from jobs.spec.load import dump_spec
from jobs.spec.paths import make_paths_absolute
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import LEDGER, SPEC, RunStore
from tests.jobs.search.specs import a_search


def _planned(
    folder: Path, config: dict[str, Any], **constraints: float
) -> PlannedTrial | TrialRecord:
    search = a_search(folder, {"constraints": constraints})
    return plan_trial(search, validate_run(make_paths_absolute(search)), TrialRecord(3, config))


def test_a_trial_that_may_run_has_its_costs_by_plan(folder: Path):
    found = _planned(folder, {"method.rank": 4})
    assert isinstance(found, PlannedTrial)
    assert found.record.number == 3 and found.record.status == "waiting"
    assert found.record.trainable_share and found.record.adapter_bytes and found.record.memory_bytes
    assert found.validated.spec.method.rank == 4


@pytest.mark.parametrize(
    ("name", "limit"),
    [("trainable_share", 0.01), ("adapter_mb", 1e-6), ("memory_gb", 1e-3)],
)
def test_a_broken_constraint_rejects_the_trial_with_its_key(folder: Path, name: str, limit: float):
    found = _planned(folder, {"method.rank": 4}, **{name: limit})
    assert isinstance(found, TrialRecord)
    assert found.status == "rejected"
    assert found.reason.startswith(f"search.constraints.{name}: ")
    assert f"above {limit:g}" in found.reason


def test_bytes_between_nodes_are_a_constraint_where_there_are_nodes(folder: Path):
    machine = {"workers_per_node": 1}
    search = a_search(
        folder, {"constraints": {"node_bytes_per_step": 1}},
        cluster={"workers": 2, "machine": machine},
    )  # fmt: skip
    found = plan_trial(
        search, validate_run(make_paths_absolute(search)), TrialRecord(0, {"method.rank": 4})
    )
    assert isinstance(found, TrialRecord) and "node_bytes_per_step" in found.reason


def test_what_can_not_be_is_rejected_with_the_plans_own_words(folder: Path):
    found = _planned(folder, {"method.rank": 64})
    assert isinstance(found, TrialRecord)
    assert found.status == "rejected" and found.reason.startswith("method.rank: ")


def test_a_trials_plan_does_not_read_the_stores_runs(folder: Path):
    found = _planned(folder, {"method.rank": 4})
    assert isinstance(found, PlannedTrial)
    run = RunStore(DirectoryStore(folder / "store"), "earlier")
    run.write_text(SPEC, dump_spec(found.validated.spec))
    run.write_json(LEDGER, {"tokens": 100, "seconds": 1.0, "steps": 4})
    search = a_search(folder)
    checked = validate_run(make_paths_absolute(search))
    assert checked.plan.estimate and checked.plan.estimate.speed is not None
    again = plan_trial(search, checked, TrialRecord(4, {"method.rank": 4}))
    assert isinstance(again, PlannedTrial)
    assert again.validated.plan.estimate and again.validated.plan.estimate.speed is None
