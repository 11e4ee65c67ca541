"""From `make up` to a rollback, with the real model, through the command line alone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from infra.local.home import STORE, Home
from tests.infra.whole import SLORA, Whole
from tests.tiny import laid_over

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
ROWS, HELD_OUT = 24, 4
LONGEST_S = 900.0
"""A run of a few steps takes a minute and a half where nothing else does."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    made = Whole(Home(tmp_path_factory.mktemp("up")))
    done = made.up()
    try:
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two specs and their rows: the example in short, and a retraining of it."""
    folder = tmp_path_factory.mktemp("specs")
    rows = (ROOT / ".cache/data/chat.train.jsonl").read_text(encoding="utf-8").splitlines()
    write_rows(folder / "train.jsonl", rows[:ROWS])
    # Rows that it learns, so that what is trained on is better on them than what was not.
    write_rows(folder / "eval.jsonl", rows[:HELD_OUT])
    write_rows(folder / "more.jsonl", rows[ROWS : ROWS + HELD_OUT])
    example = yaml.safe_load((ROOT / "jobs/examples/chat.yaml").read_text(encoding="utf-8"))
    short = laid_over(
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


def said(whole: Whole, *words: str) -> Any:
    """The answer of a command that has to end well, as a program reads it."""
    done = whole.slora(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def followed(whole: Whole, *words: str) -> tuple[str, str]:
    """What a command says that ends well, and how its run stood when the first step was told."""
    lines, status = list[str](), ""
    with subprocess.Popen(
        [SLORA, *words],
        env=whole.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as following:
        assert following.stdout is not None
        for line in following.stdout:
            lines.append(line)
            if line.startswith("step ") and not status:
                (run,) = said(whole, "runs")["runs"]
                status = run["status"]
    assert following.returncode == 0, "".join(lines)
    return "".join(lines), status


def objects(whole: Whole) -> set[str]:
    """Every key in the bucket, asked by plain boto3."""
    told = whole.environment
    lines = Path(told["AWS_SHARED_CREDENTIALS_FILE"]).read_text().split()
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=told["AWS_ENDPOINT_URL"],
        aws_access_key_id=lines[3],
        aws_secret_access_key=lines[-1],
        region_name=told["AWS_DEFAULT_REGION"],
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="slora")
    return {one["Key"] for page in pages for one in page.get("Contents", [])}


def current(whole: Whole) -> tuple[str, str]:
    """The version that the bare name means, and the run that made it."""
    found = said(whole, "adapters", "show", "chat", "--store", STORE)
    return found["label"], found["run"]


def fired(whole: Whole, schedule: str) -> str:
    """The run that the schedule's moment made, once there is one."""
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        for firing in said(whole, "schedule", "firings", schedule)["firings"]:
            if firing["run"] is not None:
                return str(firing["run"])
        # Nothing tells when a schedule fires; its moments are whole minutes.
        time.sleep(1)
    raise AssertionError("the schedule did not fire")


def test_a_run_is_followed_live_retrained_on_new_rows_promoted_and_rolled_back(
    whole: Whole, specs: Path
):
    # Submitted and followed: its words come while it runs.
    text, seen = followed(whole, "submit", str(specs / "chat.yaml"), "--follow")
    assert seen == "running", text

    # Its adapter is in the bucket.
    (first,) = said(whole, "runs")["runs"]
    assert first["status"] == "done"
    assert "store/adapters/chat/v1/manifest.json" in objects(whole)
    assert current(whole) == ("chat@v1", first["id"])

    # A schedule sees new rows, trains on from that adapter, and the gate lets it take over.
    cron = ("--cron", "* * * * *", "--only-new-data")
    said(whole, "schedule", "add", str(specs / "retrain.yaml"), "--name", "minutely", *cron)
    more = (specs / "more.jsonl").read_text(encoding="utf-8").splitlines()
    write_rows(specs / "train.jsonl", more)
    again = fired(whole, "minutely")
    said(whole, "schedule", "pause", "minutely")
    logs = whole.slora("logs", "-f", again, timeout=LONGEST_S)
    assert logs.returncode == 0, logs.stdout + logs.stderr
    assert "store/adapters/chat/v2/manifest.json" in objects(whole)
    assert current(whole) == ("chat@v2", again), logs.stdout

    # And back.
    assert whole.slora("adapters", "rollback", "chat", "--store", STORE).returncode == 0
    assert current(whole) == ("chat@v1", first["id"])
    runs = said(whole, "runs")["runs"]
    assert {one["id"]: one["status"] for one in runs} == {first["id"]: "done", again: "done"}


@pytest.mark.long
def test_a_federation_is_followed_round_by_round_and_kept_in_the_bucket(
    whole: Whole, tmp_path: Path
):
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
    (tmp_path / "federate.yaml").write_text(yaml.safe_dump(laid_over(example, short)))
    lines, _ = followed(whole, "submit", str(tmp_path / "federate.yaml"), "--follow")
    assert "round 1/2 sparse: 2 clients" in lines and "checkpoint at round 2" in lines
    (run,) = said(whole, "runs", "--kind", "federate")["runs"]
    assert run["status"] == "done"
    adapter = said(whole, "adapters", "show", "newsgroups-federated", "--store", STORE)
    assert adapter["run"] == run["id"] and adapter["federation"]["rounds"] == 2
