"""The frame of a job on a spec: its arguments, its run id, and what is reported while it works."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from jobs.places.boundary import check_spec
from jobs.spec.kinds import require_kind
from jobs.spec.load import load_spec
from jobs.spec.run_arguments import make_run_parser
from jobs.spec.schema import RunSpec
from jobs.store.runs.heartbeat import Heartbeat
from jobs.store.runs.run_store import RunStore, make_run_id
from jobs.train.job_main import record_failure, run_job
from jobs.train.localize import fetch_spec
from jobs.train.monitor.event_log import log_events
from jobs.train.monitor.phases import PhaseClock, begin_job_phases

SpecT = TypeVar("SpecT", bound=RunSpec)


@dataclass(frozen=True)
class JobRun:
    """The run that a job executes, as its arguments tell it."""

    id: str
    attempt: int
    leaves_pointer: bool = False
    """Whether the service that started the job moves the adapter's pointer."""
    submitted: float | None = None
    """When the run was submitted, in seconds since 1970."""
    checked: float | None = None
    """When the command that submitted it had checked its input."""

    def begin_phases(self, runs: RunStore) -> PhaseClock:
        """Return the clock of the run's start, after the phases before this process."""
        return begin_job_phases(
            runs.phase_events, self.attempt, submitted=self.submitted, checked=self.checked
        )


def run_spec_job(
    module: str,
    description: str | None,
    arguments: Sequence[str] | None,
    spec_class: type[SpecT],
    work: Callable[[SpecT, JobRun], None],
) -> int:
    """Load the spec that the arguments name, and call `work` with it and the run.

    Return the exit code of the job.
    """
    options = make_run_parser(module, description).parse_args(arguments)

    def load_and_work() -> None:
        spec = require_kind(load_spec(fetch_spec(options.spec), options.set), spec_class)
        check_spec(spec)
        run_id = options.run or make_run_id(spec.name, datetime.datetime.now(datetime.UTC))
        run = JobRun(
            run_id,
            options.attempt,
            options.leave_pointer,
            submitted=options.submitted,
            checked=options.checked,
        )
        work(spec, run)

    return run_job(load_and_work)


@contextmanager
def report_run(runs: RunStore, attempt: int) -> Iterator[None]:
    """Print the run's id and events, send its heartbeat and record a failure inside the block."""
    print(f"run {runs.run_id}", flush=True)
    with Heartbeat(runs, attempt), log_events(runs), record_failure(runs):
        yield
