"""The frame of every job: a refusal is one message on stderr and an exit code, no traceback."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.errors import InputError, JobsError, NotInstalled
from jobs.file_errors import translate_file_error
from jobs.process_environment import prepare_environment
from jobs.train.monitor.event_text import escape_control
from slora.errors import SloraError

if TYPE_CHECKING:
    from jobs.store.runs.run_store import RunStore

OWN_PACKAGES = ("slora", "jobs", "orchestrator")
OFFLINE_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
"""Environment of every job: nothing is fetched from a hub, and transformers shows no progress bars.
Set before the libraries are imported, which read it then."""


@contextmanager
def require_extra(extra: str = "train") -> Iterator[None]:
    """Raise NotInstalled if a package that the block imports is missing.

    Commands import inside functions: torch, Ray and SQLAlchemy take long, and not every machine has
    them. A missing module of our own is a bug and keeps its error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in OWN_PACKAGES:
            raise
        raise NotInstalled(package, extra) from error


def run_job(work: Callable[[], None], *, environment: Mapping[str, str] = OFFLINE_QUIET) -> int:
    """Run a job's work with these environment variables set, and return its exit code.

    0 means done, 1 that it failed, 2 that the input is wrong, 3 that Ray is not reachable.
    """
    os.environ.update(environment)
    prepare_environment()
    try:
        with require_extra():
            _translate_file_errors(work)
    except InputError as error:
        for fault in error.faults:
            print(escape_control(str(fault)), file=sys.stderr)
        return error.exit_code
    except JobsError as error:
        print(escape_control(str(error)), file=sys.stderr)
        return error.exit_code
    except SloraError as error:
        print(escape_control(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _translate_file_errors(work: Callable[[], None]) -> None:
    try:
        work()
    except OSError as error:
        if (translated := translate_file_error(error)) is None:
            raise
        raise translated from error


@contextmanager
def record_failure(runs: RunStore) -> Iterator[None]:
    """Record a job error inside the block as the run's last event, and raise it again."""
    try:
        yield
    except JobsError as error:
        runs.events.append({"event": "failed", "time": time.time(), "why": str(error)})
        raise
