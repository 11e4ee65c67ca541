"""The driver of a job on a Ray that this command starts: a child process, started beside Ray.

It has the methods of Ray's client of jobs that the command uses. Ray's own job manager would start
the driver only once its dashboard and an agent are up, and load Ray once more to watch it; as a
child it loads its libraries while Ray starts. Killing this command still ends the driver.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import Unreachable

LOG_FILE, MAX_LOG_BYTES = "driver.log", 1 << 20
STOP_GRACE_S = 3.0
"""Seconds for a driver to end after SIGTERM, as Ray's job manager gives it."""


@dataclass(frozen=True)
class DriverStatus:
    """The state of a driver, with the names of Ray's own client."""

    status: str
    driver_exit_code: int | None

    def is_terminal(self) -> bool:
        """Return whether the driver has ended."""
        return self.driver_exit_code is not None


class LocalDriver:
    """Starts at most one driver, in a session of its own."""

    poll_interval_s = 0.1

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        check_ray: Callable[[], None],
        prepare_child: Callable[[], None],
    ) -> None:
        """`check_ray` raises Unreachable if Ray ended, or did not start in time."""
        self._log, self._environment = folder / LOG_FILE, environment
        self._check_ray, self._prepare_child = check_ray, prepare_child
        self._process: subprocess.Popen[bytes] | None = None

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: Mapping[str, Any] | None = None
    ) -> str:
        """Start the driver, and return the id."""
        variables = (runtime_env or {}).get("env_vars", {})
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                shlex.split(entrypoint),
                env={**self._environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._prepare_child,
            )
        return submission_id

    def get_job_status(self, submission_id: str) -> DriverStatus:
        """Return the state of the driver. Raise Unreachable if it runs on and Ray does not."""
        status = self.get_job_info(submission_id)
        if not status.is_terminal():
            self._check_ray()
        return status

    def get_job_info(self, submission_id: str) -> DriverStatus:
        """Return the state of the driver, with its exit code if it has ended."""
        code = None if self._process is None else self._process.poll()
        names = {None: "RUNNING", 0: "SUCCEEDED"}
        return DriverStatus(names.get(code, "FAILED"), code)

    def get_job_logs(self, submission_id: str) -> str:
        """Return the end of the driver's output."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - MAX_LOG_BYTES))
            return log.read().decode(errors="replace")

    def stop_job(self, submission_id: str) -> None:
        """End the driver: SIGTERM, and SIGKILL after STOP_GRACE_S."""
        if self._process is None or self._process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_GRACE_S)
                return


def make_start_check(
    head: subprocess.Popen[bytes], log: Path, *, is_ready: Callable[[], bool], timeout_s: float
) -> Callable[[], None]:
    """Return a check of a Ray that starts. It raises Unreachable with the end of Ray's log."""
    deadline = time.monotonic() + timeout_s
    started = False

    def check() -> None:
        nonlocal started
        has_ended = head.poll() is not None
        if started and not has_ended:
            return
        started = started or (not has_ended and is_ready())
        is_late = not started and time.monotonic() > deadline
        if has_ended or is_late:
            problem = f" within {timeout_s:.0f} s" if is_late else ""
            state = "ended" if started else f"did not start{problem}"
            lines = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise Unreachable("\n".join([f"Ray {state}:", *lines]))

    return check
