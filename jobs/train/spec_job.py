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

SpecT = TypeVar("SpecT", bound=RunSpec)


@dataclass(frozen=True)
class JobRun:
    """The run that a job executes, as its arguments tell it."""

    id: str
    attempt: int
    leaves_pointer: bool = False
    """Whether the service that started the job moves the adapter's pointer."""


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
        work(spec, JobRun(run_id, options.attempt, options.leave_pointer))

    return run_job(load_and_work)


@contextmanager
def report_run(runs: RunStore, attempt: int) -> Iterator[None]:
    """Print the run's id and events, send its heartbeat and record a failure inside the block."""
    print(f"run {runs.run_id}", flush=True)
    with Heartbeat(runs, attempt), log_events(runs), record_failure(runs):
        yield
