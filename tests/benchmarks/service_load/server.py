"""A service in its own process, on a fake cluster whose jobs print."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.api.server import ListenOptions, locate_token_file, serve
from orchestrator.cluster.base import Job, JobState, JobStatus
from orchestrator.control.config import ServiceConfig, parse_config
from orchestrator.registry import projects
from orchestrator.registry.database import Database
from orchestrator.registry.migrate import upgrade
from orchestrator.registry.tables import RunRow
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.control.builders import make_spec

LINES = 2000
PRINTING = "printing"
GROWTH = 397
"""Lines that a job prints between two reads of its log."""


class PrintingCluster(FakeCluster):
    """A fake cluster: jobs of runs named `printing` print until their log was read."""

    def submit(self, job: Job) -> None:
        """Start a job; one that prints runs until its log was read."""
        if job.submission.startswith(PRINTING):
            self.play(job.submission, JobStatus(JobState.RUNNING))
        super().submit(job)

    def read_log(self, submission: str, start: int = 0) -> bytes:
        """Return some more lines at each read."""
        if not submission.startswith(PRINTING):
            return super().read_log(submission, start)
        lines = len(self.logs[submission].splitlines()) + GROWTH
        if lines >= LINES:
            self.play(submission, JobStatus(JobState.FAILED, exit_code=1))
        self.logs[submission] = print_lines(submission, min(lines, LINES))
        return super().read_log(submission, start)


def print_lines(submission: str, lines: int = LINES) -> bytes:
    """Return the first lines that a job prints."""
    return b"".join(b"%s line %d \xe2\x9c\x93\r\n" % (submission.encode(), n) for n in range(lines))


def make_config(folder: Path) -> ServiceConfig:
    """Make the configuration of a service with all its data in a folder."""
    return parse_config(
        {
            "database": f"sqlite:///{folder / 'registry.db'}",
            "stores": [f"file://{folder / 'store'}"],
            "clusters": {"default": {"address": "http://127.0.0.1:1", "autoscaling": True}},
        }
    )


def fill(folder: Path, count: int) -> None:
    """Add `count` ended runs to the registry."""
    config = make_config(folder)
    upgrade(config.database)
    database = Database(config.database)
    with database.write() as session:
        projects.ensure_project(session, "default")
        session.add_all(
            RunRow(
                id=f"old-{number:06}",
                project="default",
                kind="finetune",
                name=f"old{number % 50}",
                store=config.stores[0],
                workers=1,
                priority=0,
                status="done",
                detail="",
                attempt=1,
                origin="registry",
                created_at=1.7e9 + number,
                updated_at=1.7e9 + number,
                revision=5,
            )
            for number in range(count)
        )
    database.close()


@contextmanager
def run_service(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Run a service; yield its address, an admin's token and its process id."""
    command = [sys.executable, "-m", __spec__.name, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        token = locate_token_file(make_config(folder).database).read_text().strip()
        yield address, token, process.pid
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def make_run_spec(folder: Path, name: str = "chat") -> dict[str, object]:
    """Make the spec to submit."""
    return make_spec(make_config(folder).stores[0], name=name)


if __name__ == "__main__":
    raise SystemExit(
        serve(
            make_config(Path(sys.argv[1])),
            ListenOptions(port=0),
            lambda config: {"default": PrintingCluster("default")},
            on_ready=lambda address, token: print(address, flush=True),
        )
    )
