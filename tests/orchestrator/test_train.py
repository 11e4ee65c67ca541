"""What is said of a job that ended badly: its own reason, or what killed it and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.errors import TrainingFailed
from jobs.store.directory import DirectoryStore
from jobs.store.runs import RunStore
from orchestrator import train

LOG = "\n".join(["Running entrypoint for job", *(f"trial {n} done" for n in range(30)), "Killed."])


class Jobs:
    """A Ray whose one job was killed."""

    def submit_job(self, **_: object) -> str:
        return "job"

    def get_job_info(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(status="FAILED", driver_exit_code=-9)

    def get_job_logs(self, _: str) -> str:
        return LOG


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    @contextmanager
    def ray_jobs(**_: object) -> Iterator[Jobs]:
        yield Jobs()

    monkeypatch.setattr(train, "ray_jobs", ray_jobs)
    return RunStore(DirectoryStore(tmp_path), "chat-20260101-120000-0a1b")


def said(runs: RunStore, module: str) -> str:
    words = [module, "--spec", "/s/spec.yaml", "--run", runs.run_id]
    with pytest.raises(TrainingFailed) as failed:
        train.run_here(words, runs, job_id="job", cpus=1, watch=lambda alive: None)
    assert failed.value.exit_code == 1
    return str(failed.value)


@pytest.mark.parametrize(
    ("module", "option"), [("jobs.finetune", "--run"), ("jobs.search", "--resume")]
)
def test_a_job_that_was_killed_is_told_with_the_command_that_goes_on(runs, module, option):
    text = said(runs, module)
    assert "trial 29 done\nKilled." in text and "trial 9 done" not in text
    assert text.endswith(f"-m {module} --spec /s/spec.yaml {option} {runs.run_id}")


def test_a_job_that_said_why_it_failed_is_told_in_its_own_words(runs):
    runs.events.append({"event": "failed", "why": "the loss is nan. Lower the learning rate."})
    assert said(runs, "jobs.finetune") == (
        f"run {runs.run_id}: the loss is nan. Lower the learning rate."
    )
