"""The audit: the plan against the ledger, the tolerances, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.errors import InputError
from jobs.plan.audit import AuditLine, compare_with_plan, list_violations
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from jobs.spec.paths import make_paths_absolute
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import LEDGER, PLAN, RunStore
from orchestrator.cli.main import app
from tests.tiny import chat_rows, hollow_model, merge_spec, tiny_spec

RUN = "tiny-20260101-120000-0a1b"
TWO_NODES = {"workers": 4, "sharding": "cluster", "machine": {"workers_per_node": 2}}
STEPS = {"sparse": 2, "low-rank": 4}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the plan that a run of the tiny spec on two machines records."""
    folder = tmp_path_factory.mktemp("audited")
    hollow_model(folder / "model")
    chat_rows(folder / "train.jsonl", 8)
    spec = make_paths_absolute(validate_spec(tiny_spec(folder, cluster=TWO_NODES)))
    values = validate_run(spec, quick=True).plan.to_json()
    plan_values: dict[str, Any] = json.loads(json.dumps(values))
    return plan_values


def make_ledger(plan: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the ledger of a run that went as planned, with changes."""
    prediction = plan["estimate"]
    way = next(way for way in prediction["options"] if way["sharding"] == plan["sharding"])
    wire: dict[str, dict[str, Any]] = {}
    for flow in way["wire"]:
        values = {"calls": flow["times"], "bytes": flow["total"]}
        wire.setdefault(flow["stage"], {})[flow["cause"]] = values
    ledger = {
        "tokens": 100, "seconds": 2.0, "steps": 6, "steps_by_stage": STEPS, "wire": wire,
        "memory": {"0": {"peak": way["peak"], "host": "a"}, "1": {"peak": 1000, "host": "b"}},
        "workers": 4, "nodes": 2, "sharding": plan["sharding"],
    }  # fmt: skip
    return merge_spec(ledger, changes)


def find_line(plan: dict[str, Any], name: str, **changes: Any) -> AuditLine:
    [result] = [
        line
        for line in compare_with_plan(RUN, plan, make_ledger(plan, **changes))
        if line.name == name
    ]
    return result


def count_bytes(plan: dict[str, Any], stage: str, cause: str) -> int:
    result: int = make_ledger(plan)["wire"][stage][cause]["bytes"]
    return result


def test_a_run_as_planned_has_no_violations(plan: dict[str, Any]):
    lines = compare_with_plan(RUN, plan, make_ledger(plan))
    assert list_violations(lines) == []
    binding = [line.name for line in lines if line.tolerance is not None]
    assert binding == [
        "gradients, sparse", "base, sparse", "gradients, low-rank", "base, low-rank", "peak memory",
    ]  # fmt: skip


OFF: dict[str, tuple[str, str, float, bool]] = {
    "a tenth of the gradients": ("sparse", "gradients", 1.1, True),
    "the base by less than two in a hundred": ("sparse", "base", 1.019, False),
    "the base by more than two in a hundred": ("low-rank", "base", 1.021, True),
    "less of the base": ("low-rank", "base", 0.97, True),
    "twice the hand-off, which nobody promised": ("low-rank", "hand-off", 2.0, False),
}


@pytest.mark.parametrize(("stage", "cause", "times", "violated"), OFF.values(), ids=OFF)
def test_each_cause_has_its_tolerance(
    plan: dict[str, Any], stage: str, cause: str, times: float, violated: bool
):
    sent = round(count_bytes(plan, stage, cause) * times)
    assert sent != count_bytes(plan, stage, cause)
    changed = {"wire": {stage: {cause: {"bytes": sent}}}}
    name = cause if cause == "hand-off" else f"{cause}, {stage}"
    assert find_line(plan, name, **changed).violated is violated


def test_each_exchange_may_round_by_one_byte_and_no_more(plan: dict[str, Any]):
    sent = count_bytes(plan, "low-rank", "gradients")
    for more, violated in ((4, False), (5, True), (-5, True)):
        changed = {"wire": {"low-rank": {"gradients": {"bytes": sent + more}}}}
        assert find_line(plan, "gradients, low-rank", **changed).violated is violated


@pytest.mark.parametrize(("times", "violated"), [(1.14, False), (1.16, True), (0.84, True)])
def test_peak_memory_has_a_tolerance_of_fifteen_percent(
    plan: dict[str, Any], times: float, violated: bool
):
    peak = round(make_ledger(plan)["memory"]["0"]["peak"] * times)
    assert find_line(plan, "peak memory", memory={"0": {"peak": peak}}).violated is violated


def test_traffic_is_compared_for_the_steps_that_ran(plan: dict[str, Any]):
    half = count_bytes(plan, "low-rank", "gradients") // 2
    wire = {"low-rank": {"gradients": {"bytes": half, "calls": 2}}}
    changed = {"wire": wire, "steps_by_stage": {"low-rank": 2}}
    line = find_line(plan, "gradients, low-rank", **changed)
    assert (line.planned, line.violated) == (half, False)


def test_a_missing_record_is_a_violation(plan: dict[str, Any]):
    assert find_line(plan, "peak memory", memory=None).violated
    assert find_line(plan, "gradients, sparse", wire=None).violated


def test_unplanned_traffic_of_the_base_is_a_violation(plan: dict[str, Any]):
    plan_values = merge_spec(plan, {"sharding": "replicate", "estimate": {"sharding": "replicate"}})
    travels = {"wire": {"sparse": {"base": {"calls": 3, "bytes": 10}}}}
    line = find_line(plan_values, "base, sparse", **travels)
    assert (line.planned, line.actual, line.violated) == (0, 10, True)


def test_traffic_does_not_bind_with_another_number_of_workers(plan: dict[str, Any]):
    lines = compare_with_plan(RUN, plan, make_ledger(plan, workers=2))
    assert [line.name for line in lines if line.tolerance is not None] == ["peak memory"]
    assert (lines[0].planned, lines[0].actual) == (4, 2)


def test_a_run_without_an_estimate_is_refused():
    with pytest.raises(InputError, match="has no estimate in its plan"):
        compare_with_plan(RUN, {"name": "tiny"}, {})


def write_run(store: Path, plan: dict[str, Any], ledger: dict[str, Any]) -> str:
    runs = RunStore(DirectoryStore(store), RUN)
    runs.write_json(PLAN, plan)
    runs.write_json(LEDGER, ledger)
    return f"file://{store}"


def ask(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})


def test_the_command_compares_plan_and_run_and_exits_with_zero(
    plan: dict[str, Any], tmp_path: Path
):
    result = ask("audit", RUN, "--store", write_run(tmp_path, plan, make_ledger(plan)))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == "All values are within their tolerances."
    values = next(line.split() for line in lines if line.startswith("gradients, sparse"))
    assert values[-3:] == ["+0.00%", "exact", "ok"]


def test_the_command_names_violations_and_exits_with_one(plan: dict[str, Any], tmp_path: Path):
    ledger = make_ledger(plan, memory={"0": {"peak": 1}, "1": None})
    store = write_run(tmp_path, plan, ledger)
    result = ask("audit", RUN, "--store", store)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "Not as planned: peak memory."
    values = json.loads(ask("audit", RUN, "--store", store, "--json").stdout)
    assert values["as_planned"] is False
    assert [line["name"] for line in values["lines"] if line["violated"]] == ["peak memory"]


def test_a_missing_run_exits_with_two(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    assert ask("audit", RUN, "--store", f"file://{tmp_path}").exit_code == 2
