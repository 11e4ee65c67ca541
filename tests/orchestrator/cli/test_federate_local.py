"""A federation at the command line: its plan, and what its run is held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.federation.artifacts import pin_spec
from jobs.federation.check import check_federation
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from orchestrator.cli.audit import AuditLine, compare_with_plan, list_violations
from orchestrator.cli.main import app
from orchestrator.registry.rebuild.run_files import RunFiles, list_runs, read_run_files
from tests.jobs.federation.specs import a_federation, raw_federated
from tests.tiny import chat_rows, hollow_model, merge_spec, write_spec

RUN = "tiny-20260101-120000-0a1b"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federated")
    hollow_model(folder / "model")
    chat_rows(folder / "train.jsonl", 12)
    chat_rows(folder / "eval.jsonl", 4)
    return folder


def planned(place: Path, federation: dict[str, Any] | None = None) -> dict[str, Any]:
    """As a run records it."""
    found = check_federation(a_federation(place, federation), quick=True, store=False)
    whole: dict[str, Any] = json.loads(json.dumps(found.to_json()))
    return whole


def lines(plan: dict[str, Any], **changes: Any) -> dict[str, AuditLine]:
    """What the audit says of a run that went as planned, but for these changes."""
    wire: dict[str, dict[str, Any]] = {}
    for flow in plan["estimate"]["options"][0]["wire"]:
        told = {"calls": flow["times"], "bytes": flow["total"]}
        wire.setdefault(flow["stage"], {})[flow["cause"]] = told
    ledger = {"tokens": 9, "seconds": 2.0, "steps": 30, "wire": wire, "workers": 1,
              "steps_by_stage": {"sparse": 9, "low-rank": 21}, "sharding": "replicate"}  # fmt: skip
    return {line.name: line for line in compare_with_plan(RUN, plan, merge_spec(ledger, changes))}


def test_a_federation_that_went_as_planned_is_judged_by_what_went_up_and_down(place):
    found = lines(planned(place))
    assert [name for name, line in found.items() if line.tolerance is not None] == [
        "down, sparse", "up, sparse", "down, low-rank", "up, low-rank",
    ]  # fmt: skip
    assert list_violations(tuple(found.values())) == []
    assert found["steps"].planned == found["steps"].actual == 30


@pytest.mark.parametrize(("times", "breaks"), [(1.029, False), (1.031, True), (0.96, True)])
def test_bytes_may_differ_by_three_in_a_hundred(place, times, breaks):
    plan = planned(place, {"rounds": 1000})
    [flow] = [f for f in plan["estimate"]["options"][0]["wire"]
              if (f["cause"], f["stage"]) == ("up", "low-rank")]  # fmt: skip
    wire = {"low-rank": {"up": {"bytes": round(flow["total"] * times)}}}
    assert lines(plan, wire=wire)["up, low-rank"].violated is breaks


def test_a_client_that_was_lost_is_not_missed_on_the_wire(place):
    plan = planned(place)
    sent = lines(plan)["up, low-rank"].planned
    assert sent is not None
    for answers, breaks in ((13, False), (10, True)):
        wire = {"low-rank": {"up": {"bytes": round(sent * 13 / 14), "calls": answers}}}
        assert lines(plan, wire=wire)["up, low-rank"].violated is breaks


def test_drop_outs_that_were_asked_for_promise_only_what_goes_down(place):
    found = lines(planned(place, {"drop_out": 0.3}))
    judged = {name for name, line in found.items() if line.tolerance is not None}
    assert judged == {"down, sparse", "down, low-rank"}


def test_what_clients_move_is_the_same_on_any_number_of_sites(place):
    assert lines(planned(place), workers=3)["up, sparse"].tolerance is not None


def test_bytes_that_nobody_recorded_are_broken(place):
    assert lines(planned(place), wire={"sparse": {"up": None}})["up, sparse"].violated


def asked(place: Path, *words: str, **spec: Any) -> Any:
    path = write_spec(place / "spec.yaml", raw_federated(place, **spec))
    return CliRunner().invoke(app, [words[0], str(path), *words[1:]], env={"COLUMNS": "80"})


def test_the_plan_shows_the_rounds_the_links_and_what_travels(place):
    said = asked(place, "plan", cluster={"workers": 2}).stdout
    for line in (
        "clients     4, 2 a round, taking turns on 2 sites",
        "rounds      10 of 3 local steps",
        "stage               rounds    down      up  1 Mbit/s  10 Mbit/s  100 Mbit/s",
        "low-rank, a client       7   416 B   416 B",
        "up, low-rank              416 B     14  5.8 kB",
        "15,360 at most, in 10 rounds",
    ):
        assert line in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_plan_is_there_for_programs(place):
    told = json.loads(asked(place, "plan", "--json").stdout)
    assert told["federation"]["clients"] == 4
    assert told["estimate"]["steps"] == 30


@pytest.mark.parametrize("words", [("plan",), ("plan", "--json"), ("train",)])
def test_a_bad_federation_ends_with_its_faults(place, words):
    done = asked(place, *words, federation={"clients": None}, method={"rank": 0})
    assert done.exit_code == 2
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} >= {
        "federation.clients", "method.rank",
    }  # fmt: skip


def test_clients_that_only_the_rows_can_count_are_not_counted_by_a_plan(place):
    by = {"partition": "by", "column": "who", "clients": None}
    said = asked(place, "plan", federation=by, method={"mask": "gradient"}).stdout
    assert "as many as the column names, 2 a round" in said
    assert "masks, sparse" in said


def test_the_registry_knows_it_by_its_papers(place):
    store = open_store(f"file://{place}/rebuilt")
    pin_spec(a_federation(place), RunStore(store, RUN))
    [(run, papers)] = list_runs(store)
    found = read_run_files(store, run, papers)
    assert isinstance(found, RunFiles)
    assert (found.id, found.kind) == (RUN, "federate")
