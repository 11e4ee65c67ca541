"""Runs on workers that were warm before: borrowed once each, lost, and never another project's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from jobs.train.pool.pool_identity import WARM_WORKERS
from tests.jobs.search.specs import raw_search
from tests.ray.gates import Gate, gate_at
from tests.ray.pool_probe import Probe, is_alive
from tests.ray_head import Head
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec
from tests.waiting import wait_for

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(600)]

SECRET = "a-session-key-of-the-first-attempt"
VARIABLES = {WARM_WORKERS: "2", "AWS_SESSION_TOKEN": SECRET}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("warm")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 60)
    chat_rows(path / "eval.jsonl", 6)
    return path


@pytest.fixture(scope="module")
def probe(head: Head) -> Iterator[Probe]:
    head.wait_for_agent()
    probe = Probe(head)
    yield probe
    probe.close()


@pytest.fixture(scope="module")
def cold_losses(head: Head, folder: Path, probe: Probe) -> list[float]:
    """The losses of the first run, which finds no pool and leaves one behind."""
    assert probe.ask("list_pools") == []
    _finish(_submit(head, folder, "cold"))
    return _losses(folder, "cold")


def _submit(
    head: Head, folder: Path, name: str, gate: Gate | None = None, *, warm: str = "2"
) -> subprocess.Popen[str]:
    """A run as the service submits it: what belongs to the attempt is in the job's variables."""
    train = {"steps": 10, "checkpoint_every": 3}
    # Values: of factors the commit would load PEFT, which takes seconds and is not the subject.
    method = {"kind": "sparse"}
    spec = tiny_spec(folder, name=name, method=method, train=train, cluster={"workers": 2})
    path = write_spec(folder / f"{name}.yaml", spec)
    words = (*(gate.words if gate else ()), "jobs.finetune", "--spec", str(path), "--run", name)
    return head.submit(*words, variables={**VARIABLES, WARM_WORKERS: warm})


def _finish(job: subprocess.Popen[str]) -> None:
    output, _ = job.communicate(timeout=500)
    assert job.returncode == 0, output


def _events(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    events, _ = RunStore(DirectoryStore(folder / "store"), name).events.tail(0)
    return [event for event in events if event["event"] == kind]


def _losses(folder: Path, name: str) -> list[float]:
    """The losses of the steps in order; of a repeated step the last one."""
    text = (folder / "store" / "runs" / name / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    by_step = {row["step"]: row["loss"] for row in rows if "loss" in row}
    return [by_step[step] for step in sorted(by_step)]


def _loading_pids(folder: Path, name: str) -> list[int]:
    return [event["pid"] for event in _events(folder, name, "loading")]


def test_a_run_borrows_idle_workers_and_trains_the_same(head, folder, probe, cold_losses):
    idle = probe.ask("wait_for_idle", 2)
    assert _loading_pids(folder, "cold")[0] not in idle
    for pid in idle:
        assert SECRET not in Path(f"/proc/{pid}/environ").read_text()
    assert probe.ask("list_reservations") == 0

    _finish(_submit(head, folder, "warm"))
    assert _loading_pids(folder, "warm")[0] in idle
    assert _losses(folder, "warm") == cold_losses
    assert not _events(folder, "warm", "restarted")

    refilled = probe.ask("wait_for_idle", 2)
    assert not {*refilled} & {*idle}
    assert not any(map(is_alive, idle))
    assert probe.ask("list_reservations") == 0


def test_a_run_continues_from_its_checkpoint_when_a_warm_worker_is_killed(
    head, folder, probe, cold_losses
):
    idle = probe.ask("wait_for_idle", 2)
    with gate_at(folder, step=5) as gate:
        job = _submit(head, folder, "killed", gate)
        wait_for(lambda: _events(folder, "killed", "checkpoint_saved") or None, timeout_s=200)
        os.kill(idle[1], signal.SIGKILL)
        gate.open()
        _finish(job)
    first, *others = _loading_pids(folder, "killed")
    assert first in idle and others and not {*others} & {*idle}
    (restarted,) = _events(folder, "killed", "restarted")
    assert "warm worker" in restarted["why"]
    assert _events(folder, "killed", "resumed")
    assert _losses(folder, "killed") == pytest.approx(cold_losses, abs=1e-6)


def test_warm_workers_end_with_a_driver_that_is_killed(head, folder, probe, cold_losses):
    idle = probe.ask("wait_for_idle", 2)
    with gate_at(folder, step=5) as gate:
        job = _submit(head, folder, "orphans", gate)
        wait_for(lambda: _events(folder, "orphans", "checkpoint_saved") or None, timeout_s=200)
        assert all(map(is_alive, idle))
        for process in head.family("jobs.finetune --spec"):
            process.kill()
        job.communicate(timeout=60)
        wait_for(lambda: not any(map(is_alive, idle)) or None, timeout_s=60)
    wait_for(lambda: probe.ask("list_reservations") == 0 or None, timeout_s=60)
    probe.ask("wait_for_idle", 2)


def test_of_two_that_borrow_at_once_one_gets_the_workers_and_another_project_none(
    probe, cold_losses
):
    probe.ask("wait_for_idle", 2)
    assert probe.ask("race", "lab") == {"other": 0, "first": 2, "second": 0}


def test_a_start_whose_warm_worker_dies_in_its_set_up_has_each_phase_once(
    head, folder, probe, cold_losses
):
    idle = probe.ask("wait_for_idle", 2)
    os.kill(idle[1], signal.SIGSTOP)
    job = _submit(head, folder, "early")
    # Borrowed, and its CPU reserved: what follows is its set-up, which it does not answer.
    wait_for(lambda: probe.ask("list_reservations") or None, timeout_s=200)
    os.kill(idle[1], signal.SIGKILL)
    _finish(job)
    assert _loading_pids(folder, "early")[0] not in idle
    phases = [event["phase"] for event in _events(folder, "early", "phase_ended")]
    assert len(phases) == len({*phases}) and "placement" in phases


def test_a_warm_worker_that_will_be_stopped_makes_all_save(head, folder, probe, cold_losses):
    idle = probe.ask("wait_for_idle", 2)
    with gate_at(folder, step=5) as gate:
        job = _submit(head, folder, "preempted", gate)
        wait_for(lambda: _events(folder, "preempted", "checkpoint_saved") or None, timeout_s=200)
        os.kill(idle[1], signal.SIGTERM)
        gate.open()
        _finish(job)
    (preempting,) = _events(folder, "preempted", "preempting")
    saved = [event["step"] for event in _events(folder, "preempted", "checkpoint_saved")]
    assert preempting["step"] in saved
    assert not _events(folder, "preempted", "restarted")


def test_a_run_continues_without_a_pool_that_is_killed(head, folder, probe, cold_losses):
    idle = probe.ask("wait_for_idle", 2)
    with gate_at(folder, step=5) as gate:
        job = _submit(head, folder, "poolless", gate)
        wait_for(lambda: _events(folder, "poolless", "checkpoint_saved") or None, timeout_s=200)
        assert probe.ask("kill_pools")
        wait_for(lambda: not any(map(is_alive, idle)) or None, timeout_s=60)
        gate.open()
        _finish(job)
    assert _losses(folder, "poolless") == pytest.approx(cold_losses, abs=1e-6)


def test_without_the_option_a_run_borrows_nothing_and_leaves_nothing(
    head, folder, probe, cold_losses
):
    probe.ask("kill_pools")
    _finish(_submit(head, folder, "off", warm="0"))
    assert probe.ask("list_pools") == []


def test_the_trials_of_a_search_borrow_too_one_after_the_other(head, folder, probe, cold_losses):
    idle = probe.ask("wait_for_idle", 2)
    space = {"method.rank": {"choice": [2, 4]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "none", "max_concurrent": 1}
    path = folder / "search.yaml"
    spec = raw_search(folder, search, name="search", cluster={"workers": 2})
    path.write_text(yaml.safe_dump(spec))
    words = ("jobs.search", "--spec", str(path), "--run", "search")
    _finish(head.submit(*words, variables=VARIABLES))
    pids = [_loading_pids(folder, run)[0] for run in ("search-t000", "search-t001")]
    assert pids[0] == pids[1] and pids[0] in idle
