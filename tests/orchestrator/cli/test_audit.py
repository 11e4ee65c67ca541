"""The audit: a plan beside a ledger, what each line may differ by, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.errors import InputError
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from jobs.spec.paths import make_paths_absolute
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import LEDGER, PLAN, RunStore
from orchestrator.cli.audit import AuditLine, compare_with_plan, list_violations
from orchestrator.cli.main import app
from tests.tiny import chat_rows, hollow_model, merge_spec, tiny_spec

RUN = "tiny-20260101-120000-0a1b"
TWO_NODES = {"workers": 4, "sharding": "cluster", "machine": {"workers_per_node": 2}}
STEPS = {"sparse": 2, "low-rank": 4}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As a run of the tiny spec on two machines records it."""
    folder = tmp_path_factory.mktemp("audited")
    hollow_model(folder / "model")
    chat_rows(folder / "train.jsonl", 8)
    spec = make_paths_absolute(validate_spec(tiny_spec(folder, cluster=TWO_NODES)))
    told = validate_run(spec, quick=True).plan.to_json()
    whole: dict[str, Any] = json.loads(json.dumps(told))
    return whole


def ledger_of(plan: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a run that went as planned would have written."""
    prediction = plan["estimate"]
    way = next(way for way in prediction["options"] if way["sharding"] == plan["sharding"])
    wire: dict[str, dict[str, Any]] = {}
    for flow in way["wire"]:
        told = {"calls": flow["times"], "bytes": flow["total"]}
        wire.setdefault(flow["stage"], {})[flow["cause"]] = told
    made = {
        "tokens": 100, "seconds": 2.0, "steps": 6, "steps_by_stage": STEPS, "wire": wire,
        "memory": {"0": {"peak": way["peak"], "host": "a"}, "1": {"peak": 1000, "host": "b"}},
        "workers": 4, "nodes": 2, "sharding": plan["sharding"],
    }  # fmt: skip
    return merge_spec(made, changes)


def line_of(plan: dict[str, Any], name: str, **changes: Any) -> AuditLine:
    [found] = [
        one for one in compare_with_plan(RUN, plan, ledger_of(plan, **changes)) if one.name == name
    ]
    return found


def bytes_of(plan: dict[str, Any], stage: str, cause: str) -> int:
    found: int = ledger_of(plan)["wire"][stage][cause]["bytes"]
    return found


def test_a_run_that_went_as_planned_has_nothing_broken(plan: dict[str, Any]):
    lines = compare_with_plan(RUN, plan, ledger_of(plan))
    assert list_violations(lines) == []
    judged = [line.name for line in lines if line.tolerance is not None]
    assert judged == [
        "gradients, sparse", "base, sparse", "gradients, low-rank", "base, low-rank", "peak memory",
    ]  # fmt: skip


OFF: dict[str, tuple[str, str, float, bool]] = {
    "a tenth of the gradients": ("sparse", "gradients", 1.1, True),
    "the base by less than two in a hundred": ("sparse", "base", 1.019, False),
    "the base by more than two in a hundred": ("low-rank", "base", 1.021, True),
    "less of the base": ("low-rank", "base", 0.97, True),
    "twice the hand-off, which nobody promised": ("low-rank", "hand-off", 2.0, False),
}


@pytest.mark.parametrize(("stage", "cause", "times", "breaks"), OFF.values(), ids=OFF)
def test_each_cause_may_differ_by_what_was_promised(
    plan: dict[str, Any], stage: str, cause: str, times: float, breaks: bool
):
    sent = round(bytes_of(plan, stage, cause) * times)
    assert sent != bytes_of(plan, stage, cause)
    changed = {"wire": {stage: {cause: {"bytes": sent}}}}
    name = cause if cause == "hand-off" else f"{cause}, {stage}"
    assert line_of(plan, name, **changed).violated is breaks


def test_a_byte_may_be_rounded_in_each_exchange_and_no_more(plan: dict[str, Any]):
    sent = bytes_of(plan, "low-rank", "gradients")
    for more, breaks in ((4, False), (5, True), (-5, True)):
        changed = {"wire": {"low-rank": {"gradients": {"bytes": sent + more}}}}
        assert line_of(plan, "gradients, low-rank", **changed).violated is breaks


@pytest.mark.parametrize(("times", "breaks"), [(1.14, False), (1.16, True), (0.84, True)])
def test_the_worst_worker_may_differ_by_fifteen_in_a_hundred(
    plan: dict[str, Any], times: float, breaks: bool
):
    peak = round(ledger_of(plan)["memory"]["0"]["peak"] * times)
    assert line_of(plan, "peak memory", memory={"0": {"peak": peak}}).violated is breaks


def test_steps_that_were_not_run_are_not_missed_on_the_wire(plan: dict[str, Any]):
    half = bytes_of(plan, "low-rank", "gradients") // 2
    wire = {"low-rank": {"gradients": {"bytes": half, "calls": 2}}}
    changed = {"wire": wire, "steps_by_stage": {"low-rank": 2}}
    line = line_of(plan, "gradients, low-rank", **changed)
    assert (line.planned, line.violated) == (half, False)


def test_what_was_promised_and_not_recorded_is_broken(plan: dict[str, Any]):
    assert line_of(plan, "peak memory", memory=None).violated
    assert line_of(plan, "gradients, sparse", wire=None).violated


def test_a_base_that_travels_unplanned_is_broken(plan: dict[str, Any]):
    whole = merge_spec(plan, {"sharding": "replicate", "estimate": {"sharding": "replicate"}})
    travels = {"wire": {"sparse": {"base": {"calls": 3, "bytes": 10}}}}
    line = line_of(whole, "base, sparse", **travels)
    assert (line.planned, line.actual, line.violated) == (0, 10, True)


def test_a_run_with_other_workers_is_told_and_its_wire_not_judged(plan: dict[str, Any]):
    lines = compare_with_plan(RUN, plan, ledger_of(plan, workers=2))
    assert [line.name for line in lines if line.tolerance is not None] == ["peak memory"]
    assert (lines[0].planned, lines[0].actual) == (4, 2)


def test_a_run_from_before_predictions_is_refused():
    with pytest.raises(InputError, match="has no prediction in its plan"):
        compare_with_plan(RUN, {"name": "tiny"}, {})


def written(store: Path, plan: dict[str, Any], ledger: dict[str, Any]) -> str:
    runs = RunStore(DirectoryStore(store), RUN)
    runs.write_json(PLAN, plan)
    runs.write_json(LEDGER, ledger)
    return f"file://{store}"


def ask(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})


def test_the_command_shows_plan_beside_run_and_ends_well(plan: dict[str, Any], tmp_path: Path):
    result = ask("audit", RUN, "--store", written(tmp_path, plan, ledger_of(plan)))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == "Everything that was promised is as planned."
    told = next(line.split() for line in lines if line.startswith("gradients, sparse"))
    assert told[-3:] == ["+0.00%", "exact", "ok"]


def test_the_command_names_what_is_broken_and_ends_with_1(plan: dict[str, Any], tmp_path: Path):
    ledger = ledger_of(plan, memory={"0": {"peak": 1}, "1": None})
    store = written(tmp_path, plan, ledger)
    result = ask("audit", RUN, "--store", store)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "Not as planned: peak memory."
    told = json.loads(ask("audit", RUN, "--store", store, "--json").stdout)
    assert told["as_planned"] is False
    assert [line["name"] for line in told["lines"] if line["broken"]] == ["peak memory"]


def test_a_run_that_is_not_there_is_exit_code_2(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    assert ask("audit", RUN, "--store", f"file://{tmp_path}").exit_code == 2
