"""The job under `ray job submit`, on a real Ray with token authentication on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.plan.settled_dtype import read_settled_dtype
from jobs.store.adapters.operations import resolve_adapter, verify_adapter
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore, list_runs
from jobs.train.monitor.phases import PHASES, collect_starts
from slora.formats.peft import read_adapter
from tests.ray.gates import gate_at
from tests.ray.test_dtype import list_recorded_dtypes
from tests.ray_head import Head
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _agent(head: Head) -> None:
    head.wait_for_agent()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 60)
    chat_rows(path / "eval.jsonl", 6)
    return path


def _spec(folder: Path, name: str, **changes: object) -> str:
    data = {"eval": str(folder / "eval.jsonl")}
    spec = tiny_spec(folder, name=name, data=data, cluster={"workers": 2}, **changes)
    return str(write_spec(folder / f"{name}.yaml", spec))


def test_a_job_without_the_token_is_refused(head, folder):
    stranger = {**head.environment, "RAY_AUTH_MODE": "disabled"}
    stranger.pop("RAY_AUTH_TOKEN_PATH")
    words = ("jobs.finetune", "--spec", _spec(folder, "stranger"))
    job = head.submit(*words, environment=stranger)
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert (
        "401" in output
        or "nauthenticated" in output
        or "nauthorized" in output
        or "token" in output
    )


def test_a_bad_spec_fails_the_job_with_its_faults_before_a_worker_starts(head, folder):
    spec = _spec(folder, "bad", train={"batch_size": 5})
    job = head.submit("jobs.finetune", "--spec", spec)
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "train.batch_size: 5 sequences cannot be divided by 2 workers" in output
    assert not (folder / "store" / "adapters" / "bad").exists()


@pytest.mark.long
def test_slora_train_joins_a_running_ray_and_reports_a_failure_in_one_message(head, folder):
    spec = _spec(folder, "burst", train={"learning_rate": 1e15, "warmup": 0.0})
    slora = str(Path(sys.executable).with_name("slora"))
    done = subprocess.run(
        [slora, "train", spec],
        env={**head.environment, "RAY_ADDRESS": head.url},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert f"Connected to Ray at {head.url}" in output
    assert "Starting Ray" not in output
    message = [line for line in output.splitlines() if "Lower the learning rate" in line]
    assert len(set(message)) == 1, output
    assert "the gradient norm is nan" in message[0]
    assert "Traceback" not in output
    store = DirectoryStore(folder / "store")
    run = next(run for run in list_runs(store) if run.startswith("burst-"))
    events, _ = RunStore(store, run).events.tail(0)
    assert [event["event"] for event in events].count("failed") == 1


@pytest.mark.long
def test_a_submitted_job_whose_worker_is_killed_resumes_and_commits(head, folder):
    train = {"steps": 30, "checkpoint_every": 5}
    spec = _spec(folder, "sent", train=train, model={"dtype": "auto"})
    store = DirectoryStore(folder / "store")
    runs = RunStore(store, "sent-1")
    with gate_at(folder, step=12) as gate:
        job = head.submit(*gate.words, "jobs.finetune", "--spec", spec, "--run", "sent-1")
        assert job.stdout is not None
        lines = []
        for line in job.stdout:
            lines.append(line)
            if "checkpoint at step 10" in line:
                break
        events, _ = runs.events.tail(0)
        victim = next(event["pid"] for event in events if event["event"] == "loading")
        os.kill(victim, signal.SIGKILL)
        gate.open()
        rest, _ = job.communicate(timeout=240)
    output = "".join(lines) + rest
    assert job.returncode == 0, output
    for words in ("before training: loss", "energy retained", "resuming from step", "sent@v1"):
        assert words in output
    steps = [metric["step"] for metric in runs.metrics.tail(0)[0] if "evaluation" not in metric]
    # Nothing is lost, and no more is repeated than lies between two checkpoints.
    assert set(steps) == set(range(1, 31))
    assert len(steps) <= 30 + 5
    manifest = resolve_adapter(store, "sent")
    assert manifest.version == 1
    # The workers that replaced the killed one compute in the dtype that the run settled on.
    choice = read_settled_dtype(runs)
    assert choice and choice.is_auto
    assert list_recorded_dtypes(runs, "sent") == {choice.dtype}
    settled = [e["dtype"] for e in runs.events.tail(0)[0] if e["event"] == "dtype_settled"]
    assert settled == [choice.dtype]
    # The workers that replaced the killed one have a start of their own.
    first, again = collect_starts(runs.events.tail(0)[0])
    assert list(first.phases) == [phase for phase in PHASES if phase != "queue"]
    assert list(again.phases) == list(PHASES)[list(PHASES).index("placement") :]
    assert first.is_complete and again.is_complete and again.since > first.since + first.wait_s
    assert "seconds" in output and "until the first step ended" in " ".join(output.split())
    assert verify_adapter(store, manifest) == []
    assert manifest.world_size == 2
    assert list(manifest.evaluation) == ["before", "sparse", "handoff", "end"]
    assert len(read_adapter(folder / "store" / "adapters" / "sent" / "v1").factors) == 14
    assert runs.read_json("plan.json")["workers"] == 2
    assert runs.read_json("ledger.json")["tokens"] > 0
    run = folder / "store" / "runs" / "sent-1"
    assert not (run / "ray").exists()
    assert list((run / "tensorboard").iterdir())
