"""`slora submit`: the checks before a submission, its content, and the exit codes."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.registry.lifecycle import Reason, Status
from tests.orchestrator.cli.commands.conftest import CommandHarness
from tests.tiny import tiny_spec, write_spec

TO_DONE = (Status.SUBMITTED, Status.RUNNING, Status.PUBLISHING, Status.DONE)


def spec(cli: CommandHarness, **overrides: Any) -> str:
    return str(write_spec(cli.folder / "spec.yaml", tiny_spec(cli.folder, **overrides)))


def read_submitted(cli: CommandHarness, run: str) -> dict[str, Any]:
    """Return the spec as the service stores it."""
    return dict(yaml.safe_load(cli.api.request("GET", f"/v1/runs/{run}/spec").text))


def test_a_submitted_spec_is_a_run_and_its_id_is_all_of_stdout(cli: CommandHarness):
    result = cli.ask("submit", spec(cli), "--set", "method.rank=4", "--priority", "7")
    assert result.exit_code == 0, result.output
    run = cli.api.request("GET", f"/v1/runs/{result.stdout.strip()}").json()
    assert (run["status"], run["kind"], run["priority"]) == ("planned", "finetune", 7)
    assert read_submitted(cli, run["id"])["method"]["rank"] == 4
    assert f"slora logs -f {run['id']}" in result.stderr


def test_relative_paths_are_resolved_against_the_working_directory(
    cli: CommandHarness, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(cli.folder)
    names = {"model": {"path": "model"}, "data": {"train": "./train.jsonl"}, "store": None}
    result = cli.ask("submit", spec(cli, **names))
    assert result.exit_code == 0, result.output
    submitted = read_submitted(cli, result.stdout.strip())
    assert submitted["model"]["path"] == str(cli.folder / "model")
    assert submitted["data"]["train"] == str(cli.folder / "train.jsonl")
    # No store was given, so the service chooses it.
    assert submitted["store"] == cli.api.service.config.stores[0]


def test_all_errors_are_reported_before_anything_is_sent(cli: CommandHarness):
    result = cli.ask("submit", spec(cli, method={"rank": 9}, data={"max_length": 500}))
    assert (result.exit_code, result.stdout) == (2, "")
    keys = [line.partition(":")[0] for line in result.stderr.splitlines()]
    assert keys == ["data.max_length", "method.rank"]
    assert cli.ask("runs").stderr.startswith("No runs yet")


def test_a_missing_relative_path_is_an_error_and_an_absolute_one_is_not(
    cli: CommandHarness, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(cli.folder)
    result = cli.ask("submit", spec(cli, data={"train": "./absent.jsonl"}, method={"rank": 9}))
    assert result.exit_code == 2
    assert "data.train" in result.stderr and "method.rank" in result.stderr
    result = cli.ask("submit", spec(cli, model={"path": "/elsewhere/model"}))
    assert result.exit_code == 0, result.output
    assert "model.path does not exist on this machine" in result.stderr


def test_an_error_of_the_service_is_printed_unchanged(cli: CommandHarness):
    result = cli.ask("submit", spec(cli), "--cluster", "mars")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "cluster: there is no cluster 'mars'. Use default.\n"
    result = cli.ask("submit", spec(cli, store="file:///elsewhere"))
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
def test_a_section_determines_the_kind_of_the_run(
    cli: CommandHarness, section: dict[str, Any], kind: str
):
    data = {"eval_fraction": 0.25}
    result = cli.ask("submit", spec(cli, data=data, **section), "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)
    assert run["kind"] == kind and run["attempts"] == []


def test_a_federation_is_submitted_as_it_is_written(cli: CommandHarness):
    section = {"clients": 4, "clients_per_round": 2, "rounds": 3}
    path = spec(cli, train={"steps": None, "batch_size": 4}, federation=section)
    result = cli.ask("submit", path, "--set", "federation.rounds=5", "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)
    assert run["kind"] == "federate" and run["attempts"] == []
    submitted = read_submitted(cli, run["id"])
    assert submitted["federation"]["rounds"] == 5 and "steps" not in submitted["train"]


@pytest.mark.parametrize(
    ("federation", "key"),
    [({"rounds": 0}, "federation.rounds"), ({"clients": None}, "federation.clients")],
)
def test_a_bad_federation_is_refused_here(
    cli: CommandHarness, federation: dict[str, Any], key: str
):
    section = {"clients": 4, "clients_per_round": 2, "rounds": 3} | federation
    result = cli.ask("submit", spec(cli, train={"steps": None}, federation=section))
    assert result.exit_code == 2 and result.stderr.startswith(f"{key}: ")


def test_a_search_whose_trials_are_federations_is_submitted_as_a_search(cli: CommandHarness):
    federation = {"clients": 4, "clients_per_round": 2, "rounds": 3}
    search = {"space": {"train.learning_rate": {"choice": [0.1, 0.2]}}, "samples": 2,
              "scheduler": "none"}  # fmt: skip
    options = {"data": {"eval_fraction": 0.25}, "train": {"steps": None, "batch_size": 4}}
    path = spec(cli, **options, federation=federation, search=search)
    result = cli.ask("submit", path, "--set", "federation.rounds=5", "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)
    assert run["kind"] == "search"
    submitted = read_submitted(cli, run["id"])
    assert submitted["federation"]["rounds"] == 5 and submitted["search"]["samples"] == 2


def test_two_sections_at_once_are_refused(cli: CommandHarness):
    result = cli.ask("submit", spec(cli, search={"space": {}}, retrain={}))
    assert result.exit_code == 2 and "cannot be combined with search" in result.stderr


def test_a_token_without_the_scope_is_refused(cli: CommandHarness):
    result = cli.ask("submit", spec(cli), scope="viewer")
    assert result.exit_code == 3
    assert "requires the scope submitter" in result.stderr and "SLORA_TOKEN" in result.stderr


def test_an_unreachable_service_exits_with_three(cli: CommandHarness):
    result = cli.ask("submit", spec(cli), "--service", "http://127.0.0.1:9")
    assert result.exit_code == 3 and "slora serve" in result.stderr


def follow(
    cli: CommandHarness, *path: Status, reason: Reason | None = None, words: tuple[str, ...] = ()
):
    """Submit and follow a run, and move it along the path of statuses."""
    known = {run["id"] for run in cli.api.request("GET", "/v1/runs").json()["items"]}
    result: list[Any] = []
    thread = threading.Thread(
        target=lambda: result.append(cli.ask("submit", spec(cli), "-f", *words))
    )
    thread.start()
    run = None
    while run is None and thread.is_alive():
        items = cli.api.request("GET", "/v1/runs").json()["items"]
        run = next((item["id"] for item in items if item["id"] not in known), None)
    if run is not None:
        cli.api.cluster.logs[f"{run}-a1"] = b"step 1\nstep 2\n"
        cli.api.move(run, *path, reason=reason)
    thread.join(30)
    return run, result[0]


def test_following_a_successful_run_exits_with_zero(cli: CommandHarness):
    run, result = follow(cli, *TO_DONE)
    assert result.exit_code == 0, result.output
    assert result.stdout == "step 1\nstep 2\n"
    assert f"run {run}: done" in result.stderr


def test_following_a_failed_run_exits_with_one_and_prints_the_next_step(cli: CommandHarness):
    path = (Status.SUBMITTED, Status.RUNNING, Status.FAILED)
    run, result = follow(cli, *path, reason=Reason.CRASHED, words=("--json",))
    assert result.exit_code == 1
    assert "step 2" in result.stderr and f"slora logs {run}" in result.stderr
    assert json.loads(result.stdout)["reason"] == "crashed"


def test_the_examples_can_be_submitted():
    from orchestrator.cli.submission import read_submission

    submission = read_submission(Path("jobs/examples/chat.yaml"))
    assert submission.kind == "finetune" and submission.spec["model"]["path"].startswith("/")
