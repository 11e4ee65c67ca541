"""`slora train`: a Ray of its own, the job followed, and nothing left behind, stopped or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.long import cases
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec
from tests.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
SLORA = str(Path(sys.executable).with_name("slora"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 60)
    return path


def _start(folder: Path, *, workers: int = 2, **train: object) -> subprocess.Popen[str]:
    spec = tiny_spec(folder, data={"eval_fraction": 0.2}, train=train, cluster={"workers": workers})
    path = write_spec(folder / "spec.yaml", spec)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [SLORA, "train", str(path), "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_as_in_a_terminal,
    )


def _as_in_a_terminal() -> None:
    """Ctrl-C is heard, also where the tests run in a shell's background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError("".join(lines))


@pytest.mark.long
def test_an_interrupted_run_leaves_no_process(folder):
    family = _interrupt_run(folder)
    assert len(family) > 5
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert not (folder / "store" / "adapters" / "tiny" / "v1").exists()


@pytest.mark.long
def test_a_run_after_an_interrupted_one_succeeds(folder):
    _interrupt_run(folder)
    again = _start(folder, workers=1, steps=6)
    stdout, stderr = again.communicate(timeout=240)
    assert again.returncode == 0, stderr
    outcome = json.loads(stdout)
    assert outcome["adapter"] == "tiny@v1"
    assert list(outcome["evaluations"]) == ["before", "sparse", "handoff", "end"]
    assert len(outcome["samples"]["end"]) == 3
    assert "committed tiny@v1" in stderr


def test_a_run_that_is_terminated_while_ray_starts_leaves_no_process(folder):
    process = _start(folder, steps=5000)
    _read_until(process, "Starting Ray")
    family = _family_of(process, at_least=3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


@pytest.mark.parametrize("number", cases([signal.SIGINT, signal.SIGTERM], [signal.SIGINT]), ids=str)
def test_a_signal_to_all_at_the_very_start_leaves_no_folder_and_no_traceback(folder, number):
    existing = set(Path("/tmp").glob("slora-????????"))
    process = _start(folder, steps=5000)
    _read_until(process, "Starting Ray")
    os.killpg(process.pid, number)
    _, output = process.communicate(timeout=90)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert set(Path("/tmp").glob("slora-????????")) <= existing


def _interrupt_run(folder: Path) -> list[psutil.Process]:
    """Interrupt a run that trains, and return the processes that it had."""
    process = _start(folder, steps=5000)
    _read_until(process, "step ")
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("RayTrainWorker" in " ".join(member.cmdline()) for member in family)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 130, stderr
    assert "Interrupted: the job was stopped" in stderr
    assert "Traceback" not in stderr
    return family


def _family_of(process: subprocess.Popen[str], *, at_least: int) -> list[psutil.Process]:
    """Everything below a process, once there are that many."""

    def list_family() -> list[psutil.Process] | None:
        family = psutil.Process(process.pid).children(recursive=True)
        return family if len(family) >= at_least else None

    return wait_for(list_family, timeout_s=30, pause_s=0.02)
