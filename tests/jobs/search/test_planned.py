"""The plan before a trial: what breaks a constraint is rejected with the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.preflight import absolute, check
from jobs.search.planned import Planned, planned
from jobs.search.rows import Row
from jobs.spec_file import dump_spec
from jobs.store.directory import DirectoryStore
from jobs.store.runs import LEDGER, SPEC, RunStore
from tests.jobs.search.asked import a_search


def _planned(folder: Path, config: dict[str, Any], **constraints: float) -> Planned | Row:
    search = a_search(folder, {"constraints": constraints})
    return planned(search, check(absolute(search.spec)), Row(3, config))


def test_a_trial_that_may_run_has_its_costs_by_plan(folder: Path):
    found = _planned(folder, {"method.rank": 4})
    assert isinstance(found, Planned)
    assert found.row.number == 3 and found.row.status == "waiting"
    assert found.row.trainable_share and found.row.adapter_bytes and found.row.memory_bytes
    assert found.checked.spec.method.rank == 4


@pytest.mark.parametrize(
    ("name", "limit"),
    [("trainable_share", 0.01), ("adapter_mb", 1e-6), ("memory_gb", 1e-3)],
)
def test_a_broken_constraint_rejects_the_trial_with_its_key(folder: Path, name: str, limit: float):
    found = _planned(folder, {"method.rank": 4}, **{name: limit})
    assert isinstance(found, Row)
    assert found.status == "rejected"
    assert found.reason.startswith(f"search.constraints.{name}: ")
    assert f"above {limit:g}" in found.reason


def test_bytes_between_nodes_are_a_constraint_where_there_are_nodes(folder: Path):
    machine = {"workers_per_node": 1}
    search = a_search(
        folder, {"constraints": {"node_bytes_per_step": 1}},
        cluster={"workers": 2, "machine": machine},
    )  # fmt: skip
    found = planned(search, check(absolute(search.spec)), Row(0, {"method.rank": 4}))
    assert isinstance(found, Row) and "node_bytes_per_step" in found.reason


def test_what_can_not_be_is_rejected_with_the_plans_own_words(folder: Path):
    found = _planned(folder, {"method.rank": 64})
    assert isinstance(found, Row)
    assert found.status == "rejected" and found.reason.startswith("method.rank: ")


def test_a_trials_plan_does_not_read_the_stores_runs(folder: Path):
    found = _planned(folder, {"method.rank": 4})
    assert isinstance(found, Planned)
    run = RunStore(DirectoryStore(folder / "store"), "earlier")
    run.write_text(SPEC, dump_spec(found.checked.spec))
    run.write_json(LEDGER, {"tokens": 100, "seconds": 1.0, "steps": 4})
    search = a_search(folder)
    checked = check(absolute(search.spec))
    assert checked.plan.prediction and checked.plan.prediction.speed is not None
    again = planned(search, checked, Row(4, {"method.rank": 4}))
    assert isinstance(again, Planned)
    assert again.checked.plan.prediction and again.checked.plan.prediction.speed is None
