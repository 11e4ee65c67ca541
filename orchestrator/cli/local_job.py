"""Run a module as a job of a local Ray: submit it, poll it, stop it, and report how it ended."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import requests

from jobs.errors import JobsError, TrainingFailed, Unreachable
from jobs.spec.run_arguments import CHECKED, SUBMITTED
from jobs.store.runs.run_store import RunStore
from jobs.store.trust.trust_policy import make_trust_environment
from orchestrator.cli.console import note
from orchestrator.cli.local_ray import connect_ray

RAY_CLIENT_ERRORS = (RuntimeError, requests.RequestException)
"""Errors of Ray's client if the dashboard answers wrongly, or not at all."""
RAY_SILENCE_TIMEOUT_S = 30.0
"""Seconds without an answer after which Ray counts as unreachable."""
STATUS_INTERVAL_S = 1.0
"""Seconds between two requests for the status of the job."""
AGENT_TIMEOUT_S = 60.0
"""Seconds until a Ray that has just started must accept a job."""
STOP_TIMEOUT_S = 30.0
"""Seconds to wait for a stopped job to end; Ray itself kills it after three."""


def run_local_job(
    arguments: Sequence[str],
    run_store: RunStore,
    *,
    job_id: str,
    cpus: int,
    submitted: float,
    watch: Callable[[Callable[[], bool]], None],
    connect: Callable[..., AbstractContextManager[Any]] = connect_ray,
) -> bool:
    """Run a module as a job of a local Ray and watch it to its end. Return False after Ctrl-C.

    `submitted` is when the command started, from where the run's wait is measured. Raise
    TrainingFailed with the job's own reason.
    """
    times = [SUBMITTED, f"{submitted:.3f}", CHECKED, f"{time.time():.3f}"]
    # An exception lets the job be stopped and Ray be shut down on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with connect(cpus=cpus) as client:
        _submit_job(client, shlex.join([sys.executable, "-m", *arguments, *times]), job_id)
        try:
            watch(_JobPoller(client, job_id))
        except BaseException as interruption:
            _stop_job(client, job_id, run_store)
            if isinstance(interruption, KeyboardInterrupt):
                return False
            raise
        code = _read_exit_code(client, job_id)
        if code:
            raise _make_error(client, job_id, run_store, code, arguments)
    return True


def locate_run_file(run_store: RunStore, file_name: str) -> str:
    """Return the location of a run's file for a job's command line: it holds only names of ours."""
    return run_store.store.url(run_store.key(file_name)).removeprefix("file://")


def _submit_job(client: Any, entrypoint: str, job_id: str) -> str:
    """Submit the job once Ray's job agent is up, which takes some seconds, and return its id.

    A busy dashboard may drop a connection before or after it accepts the job.
    """
    deadline, was_unanswered = time.monotonic() + AGENT_TIMEOUT_S, False
    # A Ray that runs already has the environment of its own start.
    environment = make_trust_environment()
    options = {"runtime_env": {"env_vars": environment}} if environment else {}
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, submission_id=job_id, **options))
        except (requests.ConnectionError, requests.Timeout) as connection_error:
            was_unanswered, refusal = True, str(connection_error)
        except RuntimeError as error:
            refusal = str(error)
            if was_unanswered and "already exists" in refusal:
                return job_id
            if "No available agent" not in refusal:
                raise
        if time.monotonic() > deadline:
            raise Unreachable(f"Ray accepted no job within {AGENT_TIMEOUT_S:.0f} s: {refusal}")
        time.sleep(STATUS_INTERVAL_S / 2)


class _JobPoller:
    """Tell whether the job still runs, with at most one request to Ray per second.

    A Ray that does not answer for a while does not mean that the job has ended. Raise Unreachable
    after RAY_SILENCE_TIMEOUT_S without an answer.
    """

    def __init__(self, client: Any, job_id: str) -> None:
        self._client, self._job_id = client, job_id
        self._last_poll, self._last_answer, self._is_running = 0.0, time.monotonic(), True
        # A process of ours costs nothing to look at.
        self._interval_s = getattr(client, "poll_interval_s", STATUS_INTERVAL_S)

    def __call__(self) -> bool:
        if self._is_running and time.monotonic() - self._last_poll >= self._interval_s:
            self._last_poll = time.monotonic()
            try:
                self._is_running = not self._client.get_job_status(self._job_id).is_terminal()
                self._last_answer = time.monotonic()
            except RAY_CLIENT_ERRORS as error:
                if time.monotonic() - self._last_answer > RAY_SILENCE_TIMEOUT_S:
                    raise Unreachable(
                        f"Ray has not answered for {RAY_SILENCE_TIMEOUT_S:.0f} s "
                        f"({type(error).__name__}). The run's checkpoints are saved: "
                        "`python -m jobs.finetune` (`.search`, `.federate`) resumes from them with "
                        "the run's spec and id (--run)."
                    ) from error
        return self._is_running


def _stop_job(client: Any, job_id: str, run_store: RunStore) -> None:
    note("Stopping the job ...")
    # A Ray that no longer exists runs no job.
    with suppress(*RAY_CLIENT_ERRORS):
        client.stop_job(job_id)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not client.get_job_status(job_id).is_terminal() and time.monotonic() < deadline:
            time.sleep(STATUS_INTERVAL_S / 5)
    run_store.events.append({"event": "stopped", "time": time.time(), "why": "interrupted"})


def _read_exit_code(client: Any, job_id: str) -> int:
    info = client.get_job_info(job_id)
    if info.status == "SUCCEEDED":
        return 0
    return info.driver_exit_code if info.driver_exit_code in (1, 2, 3) else 1


def _make_error(
    client: Any, job_id: str, run_store: RunStore, code: int, arguments: Sequence[str]
) -> JobsError:
    """Return the run's own reason, or the last lines of the job's log and how to resume."""
    events, _ = run_store.events.tail(0)
    reasons = [event["why"] for event in events if event.get("event") == "failed"]
    if reasons:
        error = TrainingFailed(f"run {run_store.run_id}", reasons[-1].rstrip("."))
    else:
        # The job was killed before it could record a reason, which may be gone the next time.
        log = client.get_job_logs(job_id).strip().splitlines()
        log_tail = "\n".join(log[-20:]).rstrip(".")
        # A search resumes only with an explicit --resume.
        resumed = ["--resume" if argument == "--run" and arguments[0] == "jobs.search" else argument
                   for argument in arguments]  # fmt: skip
        command = shlex.join([sys.executable, "-m", *resumed])
        error = TrainingFailed(
            f"run {run_store.run_id}",
            log_tail,
            f"Its checkpoints are saved. Resume with:\n{command}",
        )
    error.exit_code = code
    return error
