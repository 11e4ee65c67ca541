"""The plan before a trial: what breaks a constraint is rejected with the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.plan.preflight import validate_run
from jobs.search.trial_plan import TrialPlanner
from jobs.search.trial_record import TrialRecord
from jobs.search.tune.trial_task import TrialTask
from jobs.spec.load import dump_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import SearchSpec
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import LEDGER, SPEC, RunStore
from tests.jobs.search.specs import a_search


def plan(
    search: SearchSpec, config: dict[str, Any], number: int = 3
) -> tuple[TrialRecord, TrialTask | None]:
    validated = validate_run(make_paths_absolute(search))
    return TrialPlanner(search, validated, run="s").plan(TrialRecord(number, config, run="s-t003"))


def test_a_trial_that_may_run_has_its_costs_by_plan(folder: Path):
    record, task = plan(a_search(folder), {"method.rank": 4})
    assert record.number == 3 and record.status == "waiting"
    assert record.trainable_share and record.adapter_bytes and record.memory_bytes
    assert task is not None and (task.number, task.config) == (3, {"method.rank": 4})
    assert task.request.spec.method.rank == 4
    assert (task.request.run_id, task.search) == ("s-t003", "s")


@pytest.mark.parametrize(
    ("name", "limit"),
    [("trainable_share", 0.01), ("adapter_mb", 1e-6), ("memory_gb", 1e-3)],
)
def test_a_violated_constraint_rejects_the_trial_with_its_key(
    folder: Path, name: str, limit: float
):
    record, task = plan(a_search(folder, {"constraints": {name: limit}}), {"method.rank": 4})
    assert record.status == "rejected" and task is None
    assert record.reason.startswith(f"search.constraints.{name}: ")
    assert f"exceeds {limit:g}" in record.reason


def test_bytes_between_nodes_are_a_constraint_if_there_are_nodes(folder: Path):
    machine = {"workers_per_node": 1}
    search = a_search(
        folder, {"constraints": {"node_bytes_per_step": 1}},
        cluster={"workers": 2, "machine": machine},
    )  # fmt: skip
    record, task = plan(search, {"method.rank": 4})
    assert task is None and "node_bytes_per_step" in record.reason


def test_an_impossible_trial_is_rejected_with_the_message_of_its_plan(folder: Path):
    record, task = plan(a_search(folder), {"method.rank": 64})
    assert record.status == "rejected" and record.reason.startswith("method.rank: ")
    assert task is None


def test_each_config_is_planned_once_and_a_search_without_any_feasible_one_fails(folder: Path):
    search = a_search(folder)
    planner = TrialPlanner(search, validate_run(make_paths_absolute(search)), run="s")
    planner.check_feasible([{"method.rank": 64}, {"method.rank": 4}])
    # The files are gone: only a plan that was made before can be returned.
    (folder / "model" / "config.json").unlink()
    (folder / "train.jsonl").unlink()
    planner.check_feasible([{"method.rank": 64}, {"method.rank": 4}])
    with pytest.raises(InputError, match=r"method.rank: .*; 1 of 1 trials are rejected"):
        planner.check_feasible([{"method.rank": 64}])


def test_the_plan_of_a_trial_does_not_read_the_runs_of_the_store(folder: Path):
    _, task = plan(a_search(folder), {"method.rank": 4})
    assert task is not None
    run = RunStore(DirectoryStore(folder / "store"), "earlier")
    run.write_text(SPEC, dump_spec(task.request.spec))
    run.write_json(LEDGER, {"tokens": 100, "seconds": 1.0, "steps": 4})
    search = a_search(folder)
    validated = validate_run(make_paths_absolute(search))
    assert validated.plan.estimate and validated.plan.estimate.speed is not None
    _, task = plan(search, {"method.rank": 4})
    assert task is not None
    assert task.request.plan.estimate and task.request.plan.estimate.speed is None
