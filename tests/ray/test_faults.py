"""Runs whose workers are preempted, hang, crash, or join and leave."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs.store.adapters.operations import resolve_adapter
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.benchmarks.kill_anywhere.__main__ import main as kill_anywhere
from tests.ray.gates import Gate, gate_at
from tests.ray_head import Head
from tests.tiny import chat_rows, merge_spec, tiny_chat_model, tiny_spec, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 60)
    return path


def _start(
    head: Head, folder: Path, name: str, gate: Gate | None = None, **changes: Any
) -> subprocess.Popen[str]:
    spec = tiny_spec(folder, **merge_spec({"name": name, "cluster": {"workers": 2}}, changes))
    path = write_spec(folder / f"{name}.yaml", spec)
    words = gate.words if gate else ()
    return head.run(*words, "jobs.finetune", "--spec", str(path), "--run", name)


def _events(folder: Path, name: str) -> list[dict[str, Any]]:
    return RunStore(DirectoryStore(folder / "store"), name).events.tail(0)[0]


def _signal_at_gate(head: Head, driver: subprocess.Popen[str], gate: Gate, number: int) -> str:
    """Signal a worker of a run that waits at its gate, open the gate, and return the output."""
    assert driver.stdout is not None
    lines = []
    for line in driver.stdout:
        lines.append(line)
        if line.startswith("step "):
            break
    head.family("ray::RayTrainWorker")[-1].send_signal(number)
    gate.open()
    rest, _ = driver.communicate(timeout=500)
    return "".join(lines) + rest


@pytest.mark.long
def test_a_preempted_worker_saves_at_once_and_the_run_continues(head, folder):
    with gate_at(folder, step=5) as gate:
        driver = _start(
            head, folder, "stopped", gate, train={"steps": 30, "checkpoint_every": 1000}
        )
        output = _signal_at_gate(head, driver, gate, signal.SIGTERM)
    assert driver.returncode == 0, output
    (preempting,) = [e for e in _events(folder, "stopped") if e["event"] == "preempting"]
    saved = [e["step"] for e in _events(folder, "stopped") if e["event"] == "checkpoint_saved"]
    # Beside it only the checkpoints at the ends of both stages.
    assert sorted(saved) == sorted({preempting["step"], 9, 30})
    assert "a worker will be stopped soon" in output


@pytest.mark.long
def test_a_hung_worker_is_named_and_the_run_continues_without_it(head, folder):
    changes = {"cluster": {"timeout": 10}, "train": {"steps": 30, "checkpoint_every": 5}}
    with gate_at(folder, step=7) as gate:
        driver = _start(head, folder, "hung", gate, **changes)
        output = _signal_at_gate(head, driver, gate, signal.SIGSTOP)
    assert driver.returncode == 0, output
    stalled = [e["why"] for e in _events(folder, "hung") if e["event"] == "stalled"]
    assert stalled and "waited 10 s for other workers: rank" in stalled[0], output
    assert "restarting" in output


@pytest.mark.long
def test_an_error_of_the_code_ends_the_run_at_once_with_one_message(head, folder):
    method = {"kind": "slora", "mask": "broken"}
    driver = _start(head, folder, "crashed", method=method)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert output.count("this score never works") == 1, output
    assert "Traceback" not in output
    assert len([e for e in _events(folder, "crashed") if e["event"] == "loading"]) == 1


@pytest.mark.long
def test_an_error_of_the_code_may_be_retried(head, folder):
    method = {"kind": "slora", "mask": "broken"}
    driver = _start(head, folder, "again", method=method, cluster={"max_crashes": 1})
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert output.count("this score never works") == 1, output
    assert len([e for e in _events(folder, "again") if e["event"] == "loading"]) == 2


@pytest.mark.long
def test_an_elastic_run_takes_as_many_workers_as_there_are(head, folder):
    driver = _start(head, folder, "elastic", cluster={"workers": {"min": 1, "max": 3}})
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output
    assert resolve_adapter(DirectoryStore(folder / "store"), "elastic").world_size == 2


@pytest.mark.long
@pytest.mark.parametrize("victim", ["controller", "driver", "host"])
def test_runs_that_are_killed_anywhere_lose_nothing(victim):
    assert kill_anywhere(["--rounds", "1", "--victims", victim]) == 0
