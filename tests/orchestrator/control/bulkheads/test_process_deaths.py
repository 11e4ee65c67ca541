"""What ends the process itself, with a real one: a look that kills it, a kill, a request to end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.control.intake import Intake
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run
from tests.orchestrator.control.builders import make_spec
from tests.waiting import wait_for

POSTGRES = pytest.param("postgresql", marks=pytest.mark.postgres)
LONG_SQLITE = pytest.param("sqlite", marks=pytest.mark.long)
LONG_POSTGRES = pytest.param("postgresql", marks=[pytest.mark.postgres, pytest.mark.long])
"""Each law holds on both databases; in `make test` on one, because each start takes seconds."""
MODULE = "tests.orchestrator.control.bulkheads.deadly_service"
TIMEOUT_S = 120


class DeathHarness:
    """Two runs, the first of which is a pill, and processes of a service."""

    def __init__(self, url: str, database: Database, store: str) -> None:
        self.url, self.database, self.store = url, database, store
        intake = Intake(database, [store], ["default"])
        self.pill, self.good = (
            intake.accept(SubmitRequest(spec=make_spec(store, name=name), priority=priority))[0]
            for name, priority in (("pill", 9), ("good", 0))
        )

    @contextmanager
    def run_service(self, how: str) -> Iterator[subprocess.Popen[str]]:
        arguments = [self.url, self.store, self.pill.id, how]
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, *arguments], stdout=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(TIMEOUT_S)
            assert process.stdout is not None
            process.stdout.close()

    def read(self, run: Run) -> Run:
        with self.database.read() as session:
            return runs.get(session, run.id)

    def wait_until_over(self, run: Run) -> Run:
        """Wait until the queue has decided about a run."""

        def read() -> Run | None:
            current = self.read(run)
            return None if current.status is Status.PLANNED else current

        return wait_for(read, timeout_s=TIMEOUT_S)

    def count(self, table: str) -> int:
        with self.database.read() as session:
            return session.scalar(text(f"SELECT count(*) FROM {table}")) or 0


@pytest.fixture
def harness(url: str, database: Database, tmp_path: Path) -> DeathHarness:
    return DeathHarness(url, database, f"file://{tmp_path}/store")


def wait_for_look(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stdout.readline() == "looking\n"


@pytest.mark.slow
@pytest.mark.parametrize("url", [LONG_SQLITE, POSTGRES], indirect=True)
def test_a_pill_that_kills_the_process_twice_is_skipped(harness: DeathHarness):
    for _ in range(2):
        with harness.run_service("kill") as process:
            assert process.wait(TIMEOUT_S) == -signal.SIGKILL
        assert harness.read(harness.pill).status is Status.PLANNED
        assert harness.count("quarantine") == 0
    with harness.run_service("kill") as process:
        pill = harness.wait_until_over(harness.pill)
        assert (pill.status, pill.reason) == (Status.FAILED, Reason.QUARANTINED)
        assert harness.wait_until_over(harness.good).status is not Status.FAILED
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    assert harness.count("looks WHERE kind = 'run'") == 0 and harness.count("quarantine") == 1


@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite", LONG_POSTGRES], indirect=True)
def test_one_kill_in_the_middle_of_a_look_is_no_proof(harness: DeathHarness):
    with harness.run_service("wait") as process:
        wait_for_look(process)
        process.kill()
        process.wait(TIMEOUT_S)
    assert harness.count("looks WHERE kind = 'run'") == 1
    with harness.run_service("look") as process:
        assert harness.wait_until_over(harness.pill).status is not Status.FAILED
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    assert harness.count("looks WHERE kind = 'run'") == 0 and harness.count("quarantine") == 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite", LONG_POSTGRES], indirect=True)
def test_requests_to_end_in_the_middle_of_a_look_prove_nothing(harness: DeathHarness):
    for _ in range(3):
        with harness.run_service("wait") as process:
            wait_for_look(process)
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
        assert harness.count("looks WHERE kind = 'run'") == 0 and harness.count("quarantine") == 0
