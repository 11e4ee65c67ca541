"""The job under `ray job submit`, on a real Ray with token authentication on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.store.adapters import resolve, verify
from jobs.store.directory import DirectoryStore
from jobs.store.runs import RunStore, list_runs
from slora.folder import read
from tests.ray_head import Head, ray_head
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("head", numbered=True)) as ready:
        # The agent that takes jobs registers some seconds after the head says that it runs.
        assert any(_accepts(ready) for _ in range(20))
        yield ready


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run")
    tiny_chat_model(made / "model")
    chat_rows(made / "train.jsonl", 60)
    chat_rows(made / "eval.jsonl", 6)
    return made


def _spec(folder: Path, name: str, **changes: object) -> str:
    data = {"eval": str(folder / "eval.jsonl")}
    spec = tiny_spec(folder, name=name, data=data, cluster={"workers": 2}, **changes)
    return str(write_spec(folder / f"{name}.yaml", spec))


def test_a_job_without_the_token_is_refused(head, folder):
    stranger = {**head.environment, "RAY_AUTH_MODE": "disabled"}
    stranger.pop("RAY_AUTH_TOKEN_PATH")
    words = ("jobs.finetune", "--spec", _spec(folder, "stranger"))
    job = head.submit(*words, environment=stranger)
    said, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "401" in said or "nauthenticated" in said or "nauthorized" in said or "token" in said


def test_a_bad_spec_fails_the_job_with_its_faults_before_a_worker_starts(head, folder):
    spec = _spec(folder, "bad", train={"batch_size": 5})
    job = head.submit("jobs.finetune", "--spec", spec)
    said, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "train.batch_size: 5 sequences can't be divided by 2 workers" in said
    assert not (folder / "store" / "adapters" / "bad").exists()


@pytest.mark.long
def test_slora_train_joins_a_running_ray_and_tells_a_failure_in_one_message(head, folder):
    spec = _spec(folder, "burst", train={"learning_rate": 1e30, "warmup": 0.0})
    slora = str(Path(sys.executable).with_name("slora"))
    done = subprocess.run(
        [slora, "train", spec],
        env={**head.environment, "RAY_ADDRESS": head.url},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert f"joined Ray at {head.url}" in said
    assert "starting Ray" not in said
    message = [line for line in said.splitlines() if "the loss is" in line]
    assert len(set(message)) == 1, said
    assert "Lower the learning rate" in message[0]
    assert "Traceback" not in said
    store = DirectoryStore(folder / "store")
    run = next(run for run in list_runs(store) if run.startswith("burst-"))
    events, _ = RunStore(store, run).events.tail(0)
    assert [event["event"] for event in events].count("failed") == 1


def test_a_submitted_job_whose_worker_is_killed_goes_on_and_commits(head, folder):
    spec = _spec(folder, "sent", train={"steps": 100, "checkpoint_every": 10})
    job = head.submit("jobs.finetune", "--spec", spec, "--run", "sent-1")
    assert job.stdout is not None
    store = DirectoryStore(folder / "store")
    runs = RunStore(store, "sent-1")
    seen = []
    for line in job.stdout:
        seen.append(line)
        if "step " in line:
            break
    events, _ = runs.events.tail(0)
    victim = next(event["pid"] for event in events if event["event"] == "loading")
    os.kill(victim, signal.SIGKILL)
    rest, _ = job.communicate(timeout=240)
    said = "".join(seen) + rest
    assert job.returncode == 0, said
    for words in ("before training: loss", "energy kept", "going on from step", "sent@v1"):
        assert words in said
    steps = [metric["step"] for metric in runs.metrics.tail(0)[0] if "evaluation" not in metric]
    # Nothing is lost, and no more repeated than lies between two checkpoints.
    assert set(steps) == set(range(1, 101))
    assert len(steps) <= 100 + 10
    manifest = resolve(store, "sent")
    assert manifest.version == 1
    assert verify(store, manifest) == []
    assert manifest.world_size == 2
    assert list(manifest.evaluation) == ["before", "sparse", "handoff", "end"]
    assert len(read(folder / "store" / "adapters" / "sent" / "v1").factors) == 14
    assert runs.read_json("plan.json")["workers"] == 2
    assert runs.read_json("ledger.json")["tokens"] > 0
    run = folder / "store" / "runs" / "sent-1"
    assert not (run / "ray").exists()
    assert list((run / "tensorboard").iterdir())


def _accepts(head: Head) -> bool:
    job = head.submit("this")
    said, _ = job.communicate(timeout=60)
    return "No available agent" not in said
