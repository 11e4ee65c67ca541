"""The report of a job that failed: its own reason, or the end of its log and how to resume."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from jobs.errors import TrainingFailed, Unreachable
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from jobs.store.trust.signatures import format_public_key
from orchestrator.cli import local_job
from tests.jobs.trust.keys import Keys

LOG = "\n".join(["Running entrypoint for job", *(f"trial {n} done" for n in range(30)), "Killed."])


class FakeRayJobs:
    """A Ray whose only job was killed, with scripted answers to a submission."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = [*answers]
        self.options: dict[str, object] = {}

    def submit_job(self, **options: object) -> str:
        self.options = options
        if self.answers:
            raise self.answers.pop(0)
        return "job"

    def get_job_info(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(status="FAILED", driver_exit_code=-9)

    def get_job_logs(self, _: str) -> str:
        return LOG


@pytest.fixture
def fake_ray() -> FakeRayJobs:
    return FakeRayJobs()


@pytest.fixture
def run_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setattr(local_job, "STATUS_INTERVAL_S", 0.0)
    return RunStore(DirectoryStore(tmp_path), "chat-20260101-120000-0a1b")


def run_on(fake_ray: FakeRayJobs, run_store: RunStore, module: str = "jobs.finetune") -> None:
    local_job.run_local_job(
        [module, "--spec", "/s/spec.yaml", "--run", run_store.run_id],
        run_store,
        job_id="job",
        cpus=1,
        submitted=1767236400.0,
        watch=lambda alive: None,
        connect=lambda **_: nullcontext(fake_ray),
    )


def run_and_fail(fake_ray: FakeRayJobs, run_store: RunStore, module: str = "jobs.finetune") -> str:
    with pytest.raises(TrainingFailed) as failed:
        run_on(fake_ray, run_store, module)
    assert failed.value.exit_code == 1
    return str(failed.value)


@pytest.mark.parametrize(
    ("module", "option"), [("jobs.finetune", "--run"), ("jobs.search", "--resume")]
)
def test_a_killed_job_is_reported_with_the_command_to_resume(fake_ray, run_store, module, option):
    text = run_and_fail(fake_ray, run_store, module)
    assert "trial 29 done\nKilled." in text and "trial 9 done" not in text
    assert text.endswith(f"-m {module} --spec /s/spec.yaml {option} {run_store.run_id}")


def test_a_job_that_recorded_a_reason_is_reported_with_it(fake_ray, run_store):
    run_store.events.append({"event": "failed", "why": "the loss is nan. Lower the learning rate."})
    assert run_and_fail(fake_ray, run_store) == (
        f"run {run_store.run_id}: the loss is nan. Lower the learning rate."
    )


ALREADY_SUBMITTED = RuntimeError(
    "Job with submission_id job already exists. Please use a different one."
)
CONNECTION_LOST = requests.ConnectionError("Remote end closed connection without response")
BUSY = RuntimeError("No available agent to submit job, please try again later.")


@pytest.mark.parametrize(
    "answers",
    [[CONNECTION_LOST], [BUSY, CONNECTION_LOST, BUSY], [CONNECTION_LOST, ALREADY_SUBMITTED]],
)
def test_an_interrupted_submission_is_made_once(fake_ray, run_store, answers):
    fake_ray.answers = [*answers]
    assert "Killed." in run_and_fail(fake_ray, run_store)
    assert fake_ray.answers == []


def test_a_duplicate_id_is_an_error(fake_ray, run_store):
    fake_ray.answers = [ALREADY_SUBMITTED]
    with pytest.raises(RuntimeError, match="already exists"):
        run_on(fake_ray, run_store)


def test_a_ray_that_accepts_no_job_is_an_error_after_the_timeout(fake_ray, run_store, monkeypatch):
    monkeypatch.setattr(local_job, "AGENT_TIMEOUT_S", 0.0)
    fake_ray.answers = [CONNECTION_LOST] * 3
    with pytest.raises(Unreachable, match="accepted no job within 0 s: Remote end closed"):
        run_on(fake_ray, run_store)


def test_a_job_demands_the_signatures_that_its_command_demands(
    fake_ray, run_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SLORA_TRUST", raising=False)
    run_and_fail(fake_ray, run_store)
    assert set(fake_ray.options) == {"entrypoint", "submission_id"}
    keys = Keys(tmp_path, monkeypatch)
    keys.trust()
    run_and_fail(fake_ray, run_store)
    variables = {"SLORA_TRUST": format_public_key(keys.ours.public_key)}
    assert fake_ray.options["runtime_env"] == {"env_vars": variables}
