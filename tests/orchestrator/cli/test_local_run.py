"""What is said of a job that ended badly: its own reason, or what killed it and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from jobs.errors import TrainingFailed, Unreachable
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from orchestrator.cli import local_run

LOG = "\n".join(["Running entrypoint for job", *(f"trial {n} done" for n in range(30)), "Killed."])


class Jobs:
    """A Ray whose one job was killed, and which answers a submission as it is told to."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = [*answers]

    def submit_job(self, **_: object) -> str:
        if self.answers:
            raise self.answers.pop(0)
        return "job"

    def get_job_info(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(status="FAILED", driver_exit_code=-9)

    def get_job_logs(self, _: str) -> str:
        return LOG


@pytest.fixture
def there() -> Jobs:
    return Jobs()


@pytest.fixture
def runs(there: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    @contextmanager
    def connect_ray(**_: object) -> Iterator[Jobs]:
        yield there

    monkeypatch.setattr(local_run, "connect_ray", connect_ray)
    monkeypatch.setattr(local_run, "STATUS_INTERVAL_S", 0.0)
    return RunStore(DirectoryStore(tmp_path), "chat-20260101-120000-0a1b")


def said(runs: RunStore, module: str) -> str:
    words = [module, "--spec", "/s/spec.yaml", "--run", runs.run_id]
    with pytest.raises(TrainingFailed) as failed:
        local_run.run_local_job(words, runs, job_id="job", cpus=1, watch=lambda alive: None)
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


HEARD = RuntimeError("Job with submission_id job already exists. Please use a different one.")
UNHEARD = requests.ConnectionError("Remote end closed connection without response")
BUSY = RuntimeError("No available agent to submit job, please try again later.")


@pytest.mark.parametrize("answers", [[UNHEARD], [BUSY, UNHEARD, BUSY], [UNHEARD, HEARD]])
def test_a_submission_that_was_broken_off_is_made_once(there, runs, answers):
    there.answers = [*answers]
    assert "Killed." in said(runs, "jobs.finetune")
    assert there.answers == []


def test_an_id_that_somebody_else_has_is_an_error(there, runs):
    there.answers = [HEARD]
    with pytest.raises(RuntimeError, match="already exists"):
        local_run.run_local_job(
            ["jobs.finetune"], runs, job_id="job", cpus=1, watch=lambda alive: None
        )


def test_a_ray_that_takes_no_job_is_told_of_in_time(there, runs, monkeypatch):
    monkeypatch.setattr(local_run, "AGENT_TIMEOUT_S", 0.0)
    there.answers = [UNHEARD] * 3
    with pytest.raises(Unreachable, match="took no job within 0 s: Remote end closed"):
        local_run.run_local_job(
            ["jobs.finetune"], runs, job_id="job", cpus=1, watch=lambda alive: None
        )
