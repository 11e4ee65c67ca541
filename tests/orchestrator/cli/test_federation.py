"""A federation on the command line: its plan and its audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.federation.check import check_federation
from jobs.plan.audit import AuditLine, compare_with_plan, list_violations
from jobs.store.open import open_store
from jobs.store.runs.pinned_spec import pin_spec
from jobs.store.runs.run_store import RunStore
from orchestrator.cli.main import app
from orchestrator.registry.rebuild.run_files import RunFiles, list_runs, read_run_files
from tests.jobs.federation.specs import a_federation, raw_federated
from tests.tiny import chat_rows, hollow_model, merge_spec, write_spec

RUN = "tiny-20260101-120000-0a1b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federated")
    hollow_model(folder / "model")
    chat_rows(folder / "train.jsonl", 12)
    chat_rows(folder / "eval.jsonl", 4)
    return folder


def make_plan(folder: Path, federation: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the plan that a run records."""
    result = check_federation(a_federation(folder, federation), quick=True, store=False)
    plan_values: dict[str, Any] = json.loads(json.dumps(result.to_json()))
    return plan_values


def audit_lines(plan: dict[str, Any], **changes: Any) -> dict[str, AuditLine]:
    """Audit a run that went as planned except for these changes."""
    wire: dict[str, dict[str, Any]] = {}
    for flow in plan["estimate"]["options"][0]["wire"]:
        values = {"calls": flow["times"], "bytes": flow["total"]}
        wire.setdefault(flow["stage"], {})[flow["cause"]] = values
    ledger = {"tokens": 9, "seconds": 2.0, "steps": 30, "wire": wire, "workers": 1,
              "steps_by_stage": {"sparse": 9, "low-rank": 21}, "sharding": "replicate"}  # fmt: skip
    return {line.name: line for line in compare_with_plan(RUN, plan, merge_spec(ledger, changes))}


def test_a_federation_is_audited_by_its_traffic_up_and_down(folder):
    result = audit_lines(make_plan(folder))
    assert [name for name, line in result.items() if line.tolerance is not None] == [
        "down, sparse", "up, sparse", "down, low-rank", "up, low-rank",
    ]  # fmt: skip
    assert list_violations(tuple(result.values())) == []
    assert result["steps"].planned == result["steps"].actual == 30


@pytest.mark.parametrize(("times", "violated"), [(1.029, False), (1.031, True), (0.96, True)])
def test_traffic_has_a_tolerance_of_three_percent(folder, times, violated):
    plan = make_plan(folder, {"rounds": 1000})
    [flow] = [f for f in plan["estimate"]["options"][0]["wire"]
              if (f["cause"], f["stage"]) == ("up", "low-rank")]  # fmt: skip
    wire = {"low-rank": {"up": {"bytes": round(flow["total"] * times)}}}
    assert audit_lines(plan, wire=wire)["up, low-rank"].violated is violated


def test_traffic_is_compared_for_the_clients_that_answered(folder):
    plan = make_plan(folder)
    sent = audit_lines(plan)["up, low-rank"].planned
    assert sent is not None
    for answers, violated in ((13, False), (10, True)):
        wire = {"low-rank": {"up": {"bytes": round(sent * 13 / 14), "calls": answers}}}
        assert audit_lines(plan, wire=wire)["up, low-rank"].violated is violated


def test_with_a_drop_out_rate_only_traffic_down_binds(folder):
    result = audit_lines(make_plan(folder, {"drop_out": 0.3}))
    binding = {name for name, line in result.items() if line.tolerance is not None}
    assert binding == {"down, sparse", "down, low-rank"}


def test_traffic_does_not_depend_on_the_number_of_sites(folder):
    assert audit_lines(make_plan(folder), workers=3)["up, sparse"].tolerance is not None


def test_missing_traffic_is_a_violation(folder):
    assert audit_lines(make_plan(folder), wire={"sparse": {"up": None}})["up, sparse"].violated


def invoke(folder: Path, *words: str, **spec: Any) -> Any:
    path = write_spec(folder / "spec.yaml", raw_federated(folder, **spec))
    return CliRunner().invoke(app, [words[0], str(path), *words[1:]], env={"COLUMNS": "80"})


def test_the_plan_shows_rounds_links_and_traffic(folder):
    output = invoke(folder, "plan", cluster={"workers": 2}).stdout
    for line in (
        "clients       4, 2 per round, in turn on 2 sites",
        "rounds        10 of 3 local steps",
        "stage                 rounds    down      up  1 Mbit/s  10 Mbit/s  100 Mbit/s",
        "low-rank, per client       7   416 B   416 B",
        "up, low-rank              416 B     14  5.8 kB",
        "15,360 at most, in 10 rounds",
    ):
        assert line in output
    assert max(map(len, output.splitlines())) <= 80


def test_the_plan_can_be_printed_as_json(folder):
    values = json.loads(invoke(folder, "plan", "--json").stdout)
    assert values["federation"]["clients"] == 4
    assert values["estimate"]["steps"] == 30


@pytest.mark.parametrize("words", [("plan",), ("plan", "--json"), ("train",)])
def test_an_invalid_federation_exits_with_all_errors(folder, words):
    done = invoke(folder, *words, federation={"clients": None}, method={"rank": 0})
    assert done.exit_code == 2
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} >= {
        "federation.clients", "method.rank",
    }  # fmt: skip


def test_a_plan_does_not_count_clients_that_only_the_rows_determine(folder):
    by = {"partition": "by", "column": "who", "clients": None}
    output = invoke(folder, "plan", federation=by, method={"mask": "gradient"}).stdout
    assert "one per value of the column, 2 per round" in output
    assert "masks, sparse" in output


def test_the_registry_recognises_a_federation_by_its_files(folder):
    store = open_store(f"file://{folder}/rebuilt")
    pin_spec(a_federation(folder), RunStore(store, RUN))
    [(run, files)] = list_runs(store)
    result = read_run_files(store, run, files)
    assert isinstance(result, RunFiles)
    assert (result.id, result.kind) == (RUN, "federate")
