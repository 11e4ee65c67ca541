"""The service with the real model, through the command line, from `make up` to a rollback."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from infra.local.paths import STORE, StackPaths
from tests.infra.local_stack import SLORA, RunningStack
from tests.tiny import merge_spec
from tests.waiting import wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
ROWS, HELD_OUT = 24, 4
RUN_TIMEOUT_S = 900.0
"""A run of a few steps takes a minute and a half on an idle machine."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    running = RunningStack(StackPaths(tmp_path_factory.mktemp("up")))
    result = running.run_up()
    try:
        assert result.returncode == 0, result.stderr
        yield running
    finally:
        running.run_down()


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create two specs and their data: a short example, and its retraining."""
    folder = tmp_path_factory.mktemp("specs")
    rows = (ROOT / ".cache/data/chat.train.jsonl").read_text(encoding="utf-8").splitlines()
    write_rows(folder / "train.jsonl", rows[:ROWS])
    # Evaluated on training rows, so that a trained adapter is better than an untrained one.
    write_rows(folder / "eval.jsonl", rows[:HELD_OUT])
    write_rows(folder / "more.jsonl", rows[ROWS : ROWS + HELD_OUT])
    example = yaml.safe_load((ROOT / "jobs/examples/chat.yaml").read_text(encoding="utf-8"))
    short = merge_spec(
        example,
        {
            "model": {"path": str(ROOT / example["model"]["path"])},
            "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
            "method": {"sparse_share": 0.34},
            "train": {"steps": 3, "batch_size": 4, "micro_batch_size": 2},
            "cluster": {"workers": 1},
            "store": STORE,
        },
    )
    gate = {"metric": "eval_loss", "better_by": 0.0}
    again = {"start": "current", "gate": gate, "promote": True}
    (folder / "chat.yaml").write_text(yaml.safe_dump(short))
    (folder / "retrain.yaml").write_text(yaml.safe_dump({**short, "retrain": again}))
    return folder


def write_rows(file: Path, rows: list[str]) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.write("\n".join(rows) + "\n")


def run_json(stack: RunningStack, *arguments: str) -> Any:
    """Return the JSON of a command that has to succeed."""
    result = stack.run_slora(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def follow_command(stack: RunningStack, *arguments: str) -> tuple[str, str]:
    """Return the output of a command, and the status of its run at the first printed step."""
    lines, status = list[str](), ""
    with subprocess.Popen(
        [SLORA, *arguments],
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as following:
        assert following.stdout is not None
        for line in following.stdout:
            lines.append(line)
            if line.startswith("step ") and not status:
                (run,) = run_json(stack, "runs")["runs"]
                status = run["status"]
    assert following.returncode == 0, "".join(lines)
    return "".join(lines), status


def list_objects(stack: RunningStack) -> set[str]:
    """Return the keys of the bucket, listed by plain boto3."""
    environment = stack.environment
    lines = Path(environment["AWS_SHARED_CREDENTIALS_FILE"]).read_text().split()
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=lines[3],
        aws_secret_access_key=lines[-1],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="slora")
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def get_current(stack: RunningStack) -> tuple[str, str]:
    """Return the current version, and the run that created it."""
    adapter = run_json(stack, "adapters", "show", "chat", "--store", STORE)
    return adapter["label"], adapter["run"]


def wait_for_firing(stack: RunningStack, schedule: str) -> str:
    """Wait until the schedule fires, and return its run."""

    def find_run() -> str | None:
        firings = run_json(stack, "schedules", "firings", schedule)["firings"]
        return next((str(firing["run"]) for firing in firings if firing["run"] is not None), None)

    # There is no event for a firing, which happens at full minutes.
    return wait_for(find_run, timeout_s=RUN_TIMEOUT_S, pause_s=1.0)


@pytest.mark.long
def test_a_run_is_followed_live_retrained_on_new_rows_promoted_and_rolled_back(
    stack: RunningStack, specs: Path
):
    # Submit and follow: the log arrives while the run is running.
    text, status = follow_command(stack, "submit", str(specs / "chat.yaml"), "--follow")
    assert status == "running", text

    # The adapter is in the bucket.
    (first,) = run_json(stack, "runs")["runs"]
    assert first["status"] == "done"
    assert "store/adapters/chat/v1/manifest.json" in list_objects(stack)
    assert get_current(stack) == ("chat@v1", first["id"])

    # A schedule detects new rows, continues training that adapter, and the gate promotes it.
    cron = ("--cron", "* * * * *", "--only-new-data")
    run_json(stack, "schedules", "add", str(specs / "retrain.yaml"), "--name", "minutely", *cron)
    more = (specs / "more.jsonl").read_text(encoding="utf-8").splitlines()
    write_rows(specs / "train.jsonl", more)
    second_run = wait_for_firing(stack, "minutely")
    run_json(stack, "schedules", "pause", "minutely")
    logs = stack.run_slora("logs", "-f", second_run, timeout=RUN_TIMEOUT_S)
    assert logs.returncode == 0, logs.stdout + logs.stderr
    assert "store/adapters/chat/v2/manifest.json" in list_objects(stack)
    assert get_current(stack) == ("chat@v2", second_run), logs.stdout

    # Roll back.
    assert stack.run_slora("adapters", "rollback", "chat", "--store", STORE).returncode == 0
    assert get_current(stack) == ("chat@v1", first["id"])
    runs = run_json(stack, "runs")["runs"]
    assert {run["id"]: run["status"] for run in runs} == {first["id"]: "done", second_run: "done"}


@pytest.mark.long
def test_a_federation_is_followed_round_by_round_and_published(stack: RunningStack, tmp_path: Path):
    rows = (ROOT / ".cache/data/newsgroups.train.jsonl").read_text(encoding="utf-8").splitlines()
    write_rows(tmp_path / "train.jsonl", rows[:40])
    write_rows(tmp_path / "eval.jsonl", rows[:8])
    example = yaml.safe_load((ROOT / "jobs/examples/federate.yaml").read_text(encoding="utf-8"))
    short = {
        "model": {"path": str(ROOT / example["model"]["path"])},
        "data": {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")},
        "train": {"batch_size": 4, "micro_batch_size": 4},
        "cluster": {"workers": 1},
        "store": STORE,
        "federation": {"clients": 3, "clients_per_round": 2, "rounds": 2, "sparse_rounds": 1,
                       "local_steps": 1, "dirichlet_alpha": 1.0},
    }  # fmt: skip
    (tmp_path / "federate.yaml").write_text(yaml.safe_dump(merge_spec(example, short)))
    lines, _ = follow_command(stack, "submit", str(tmp_path / "federate.yaml"), "--follow")
    assert "round 1/2 sparse: 2 clients" in lines and "checkpoint at round 2" in lines
    (run,) = run_json(stack, "runs", "--kind", "federate")["runs"]
    assert run["status"] == "done"
    adapter = run_json(stack, "adapters", "show", "newsgroups-federated", "--store", STORE)
    assert adapter["run"] == run["id"] and adapter["federation"]["rounds"] == 2
