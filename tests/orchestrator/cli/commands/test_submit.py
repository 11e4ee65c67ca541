"""`slora submit`: what is checked here, what is sent, and how it ends."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.registry.lifecycle import Reason, Status
from tests.orchestrator.cli.commands.conftest import Desk
from tests.tiny import tiny_spec, write_spec

TO_DONE = (Status.SUBMITTED, Status.RUNNING, Status.PUBLISHING, Status.DONE)


def spec(desk: Desk, **overrides: Any) -> str:
    return str(write_spec(desk.folder / "spec.yaml", tiny_spec(desk.folder, **overrides)))


def sent(desk: Desk, run: str) -> dict[str, Any]:
    """The spec as the service keeps it."""
    return dict(yaml.safe_load(desk.door.request("GET", f"/v1/runs/{run}/spec").text))


def test_a_submitted_spec_is_a_run_and_its_id_is_all_of_stdout(desk: Desk):
    result = desk.ask("submit", spec(desk), "--set", "method.rank=4", "--priority", "7")
    assert result.exit_code == 0, result.output
    run = desk.door.request("GET", f"/v1/runs/{result.stdout.strip()}").json()
    assert (run["status"], run["kind"], run["priority"]) == ("planned", "finetune", 7)
    assert sent(desk, run["id"])["method"]["rank"] == 4
    assert f"slora logs -f {run['id']}" in result.stderr


def test_relative_paths_are_those_of_where_the_command_was_given(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(desk.folder)
    names = {"model": {"path": "model"}, "data": {"train": "./train.jsonl"}, "store": None}
    result = desk.ask("submit", spec(desk, **names))
    assert result.exit_code == 0, result.output
    there = sent(desk, result.stdout.strip())
    assert there["model"]["path"] == str(desk.folder / "model")
    assert there["data"]["train"] == str(desk.folder / "train.jsonl")
    # Nobody named a store, so it is the service's.
    assert there["store"] == desk.door.service.config.stores[0]


def test_all_faults_are_told_before_anything_is_sent(desk: Desk):
    result = desk.ask("submit", spec(desk, method={"rank": 5}, data={"max_length": 500}))
    assert (result.exit_code, result.stdout) == (2, "")
    told = [line.partition(":")[0] for line in result.stderr.splitlines()]
    assert told == ["data.max_length", "method.rank"]
    assert desk.ask("runs").stderr.startswith("No runs yet")


def test_a_file_that_is_nowhere_is_a_fault_and_one_of_another_machine_is_not(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(desk.folder)
    result = desk.ask("submit", spec(desk, data={"train": "./absent.jsonl"}, method={"rank": 5}))
    assert result.exit_code == 2
    assert "data.train" in result.stderr and "method.rank" in result.stderr
    result = desk.ask("submit", spec(desk, model={"path": "/elsewhere/model"}))
    assert result.exit_code == 0, result.output
    assert "model.path is not on this machine" in result.stderr


def test_what_only_the_service_can_know_is_told_in_its_words(desk: Desk):
    result = desk.ask("submit", spec(desk), "--cluster", "mars")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "cluster: there is no cluster 'mars'. Use default.\n"
    result = desk.ask("submit", spec(desk, store="file:///elsewhere"))
    assert result.exit_code == 2 and result.stderr.startswith("store: ")


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        pytest.param(
            {
                "search": {
                    "space": {"train.learning_rate": {"choice": [0.1, 0.2]}},
                    "samples": 2,
                    "scheduler": "none",
                }
            },
            "search",
            id="search",
        ),
        pytest.param({"retrain": {"promote": False}}, "retrain", id="retrain"),
        pytest.param({"retrain": {}}, "retrain", id="an empty section"),
    ],
)
def test_a_section_makes_the_run_one_of_its_kind(desk: Desk, section: dict[str, Any], kind: str):
    data = {"eval_fraction": 0.25}
    result = desk.ask("submit", spec(desk, data=data, **section), "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)
    assert run["kind"] == kind and run["attempts"] == []


def test_a_federation_is_submitted_as_it_is_written(desk: Desk):
    section = {"clients": 4, "clients_per_round": 2, "rounds": 3}
    path = spec(desk, train={"steps": None, "batch_size": 4}, federation=section)
    result = desk.ask("submit", path, "--set", "federation.rounds=5", "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)
    assert run["kind"] == "federate" and run["attempts"] == []
    there = sent(desk, run["id"])
    assert there["federation"]["rounds"] == 5 and "steps" not in there["train"]


@pytest.mark.parametrize(
    ("federation", "key"),
    [({"rounds": 0}, "federation.rounds"), ({"clients": None}, "federation.clients")],
)
def test_a_bad_federation_is_refused_here(desk: Desk, federation: dict[str, Any], key: str):
    section = {"clients": 4, "clients_per_round": 2, "rounds": 3} | federation
    result = desk.ask("submit", spec(desk, train={"steps": None}, federation=section))
    assert result.exit_code == 2 and result.stderr.startswith(f"{key}: ")


def test_a_search_whose_trials_are_federations_is_submitted_as_a_search(desk: Desk):
    federation = {"clients": 4, "clients_per_round": 2, "rounds": 3}
    search = {"space": {"train.learning_rate": {"choice": [0.1, 0.2]}}, "samples": 2,
              "scheduler": "none"}  # fmt: skip
    asked = {"data": {"eval_fraction": 0.25}, "train": {"steps": None, "batch_size": 4}}
    path = spec(desk, **asked, federation=federation, search=search)
    result = desk.ask("submit", path, "--set", "federation.rounds=5", "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)
    assert run["kind"] == "search"
    there = sent(desk, run["id"])
    assert there["federation"]["rounds"] == 5 and there["search"]["samples"] == 2


def test_two_sections_at_once_are_refused(desk: Desk):
    result = desk.ask("submit", spec(desk, search={"space": {}}, retrain={}))
    assert result.exit_code == 2 and "cannot be combined" in result.stderr


def test_a_token_that_may_not_submit_is_told_so(desk: Desk):
    result = desk.ask("submit", spec(desk), scope="viewer")
    assert result.exit_code == 3
    assert "needs the scope submitter" in result.stderr and "SLORA_TOKEN" in result.stderr


def test_no_service_is_exit_code_three(desk: Desk):
    result = desk.ask("submit", spec(desk), "--service", "http://127.0.0.1:9")
    assert result.exit_code == 3 and "slora serve" in result.stderr


def followed(desk: Desk, *path: Status, reason: Reason | None = None, words: tuple[str, ...] = ()):
    """A submit that follows, its run moved along by a reconciler of ours."""
    known = {run["id"] for run in desk.door.request("GET", "/v1/runs").json()["items"]}
    result: list[Any] = []
    asking = threading.Thread(
        target=lambda: result.append(desk.ask("submit", spec(desk), "-f", *words))
    )
    asking.start()
    run = None
    while run is None and asking.is_alive():
        items = desk.door.request("GET", "/v1/runs").json()["items"]
        run = next((one["id"] for one in items if one["id"] not in known), None)
    if run is not None:
        desk.door.cluster.logs[f"{run}-a1"] = b"step 1\nstep 2\n"
        desk.door.move(run, *path, reason=reason)
    asking.join(30)
    return run, result[0]


def test_a_followed_run_that_is_done_is_exit_code_zero(desk: Desk):
    run, result = followed(desk, *TO_DONE)
    assert result.exit_code == 0, result.output
    assert result.stdout == "step 1\nstep 2\n"
    assert f"run {run}: done" in result.stderr


def test_a_followed_run_that_failed_is_exit_code_one_and_says_what_to_do(desk: Desk):
    path = (Status.SUBMITTED, Status.RUNNING, Status.FAILED)
    run, result = followed(desk, *path, reason=Reason.CRASHED, words=("--json",))
    assert result.exit_code == 1
    assert "step 2" in result.stderr and f"slora logs {run}" in result.stderr
    assert json.loads(result.stdout)["reason"] == "crashed"


def test_the_examples_can_be_read_for_sending():
    from orchestrator.cli.submission import read_submission

    found = read_submission(Path("jobs/examples/chat.yaml"))
    assert found.kind == "finetune" and found.spec["model"]["path"].startswith("/")
