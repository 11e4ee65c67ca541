"""`slora gc`: lists what is kept too long, and deletes it only with --apply."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from sqlalchemy import text
from typer.testing import CliRunner, Result

from jobs.store.local import DirectoryStore
from orchestrator.cli.main import app
from orchestrator.control.intake import Intake
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import runs
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.run_request import write_request
from orchestrator.registry.tenancy.audit_log import list_entries, make_local_actor
from orchestrator.registry.tenancy.instances import read_instance
from tests.orchestrator.control.builders import make_spec

DAY_S = 86400.0


class GcHarness:
    """A database and a store with an old run and with files that no row names."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder, self.database = folder, Database(url)
        self.store = DirectoryStore(folder / "store")
        instance = read_instance(self.database)
        intake = Intake(self.database, [self.store.url("")], ["default"], instance=instance)
        submission = SubmitRequest(spec=make_spec(self.store.url("")))
        self.old, self.young = (intake.accept(submission)[0] for _ in range(2))
        with self.database.write() as session:
            for run in (self.old, self.young):
                runs.move(session, run, Status.STOPPED, reason=Reason.USER)
            aged = f"UPDATE runs SET updated_at = updated_at - {40 * DAY_S} WHERE id = :run"
            session.execute(text(aged), {"run": self.old.id})
        write_request(self.store, "unnamed-1", intake.resolve(submission))
        at = time.time() - 8 * DAY_S
        os.utime(self.store.local_path("runs/unnamed-1/request.json"), (at, at))
        self.config = folder / "service.yaml"
        values = {
            "database": url,
            "stores": [self.store.url("")],
            "clusters": {"default": {"address": "http://127.0.0.1:1"}},
            "retention": {"runs_days": 30},
        }
        self.config.write_text(yaml.safe_dump(values))

    def gc(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["gc", "--config", str(self.config), *words])

    def list_runs(self) -> set[str]:
        with self.database.read() as session:
            return set(session.scalars(text("SELECT id FROM runs")))

    def list_folders(self) -> set[str]:
        return {key.split("/")[1] for key in self.store.list("runs/")}


@pytest.fixture
def harness(url: str, tmp_path: Path) -> Iterator[GcHarness]:
    opened = GcHarness(url, tmp_path)
    yield opened
    opened.database.close()


def test_nothing_is_deleted_without_apply(harness: GcHarness):
    result = harness.gc()
    assert result.exit_code == 0, result.output
    lines = result.stdout.replace("\n", " ")
    assert f"run {harness.old.id}" in lines and "/runs/unnamed-1: 1 files" in lines
    assert harness.young.id not in result.output
    assert "1 expired runs" in result.stderr and "would be deleted" in result.stderr
    assert harness.list_runs() == {harness.old.id, harness.young.id}
    assert harness.list_folders() == {harness.old.id, harness.young.id, "unnamed-1"}


def test_apply_deletes_what_was_listed_and_nothing_else(harness: GcHarness):
    listed = json.loads(harness.gc("--json").stdout)
    assert listed["expired_runs"] == [harness.old.id] and not listed["applied"]
    assert [item["run"] for item in listed["unnamed_runs"]] == ["unnamed-1"]
    result = harness.gc("--apply")
    assert result.exit_code == 0 and "1 expired runs" in result.stderr, result.output
    assert harness.list_runs() == harness.list_folders() == {harness.young.id}
    with harness.database.read() as session:
        deletions = list_entries(session, action="delete")
    assert [entry.object for entry in deletions] == ["unnamed-1", harness.old.id]
    assert {entry.label for entry in deletions} == {make_local_actor().label}
    again = json.loads(harness.gc("--apply", "--json").stdout)
    assert (again["expired_runs"], again["unnamed_runs"]) == (0, [])


@pytest.mark.parametrize("days", ["0", "-1", "40000", "soon"])
def test_a_retention_out_of_bounds_is_one_message(harness: GcHarness, days: str):
    changed = harness.config.read_text().replace("runs_days: 30", f"runs_days: {days}")
    harness.config.write_text(changed)
    result = harness.gc()
    assert result.exit_code == 2 and "retention.runs_days" in result.stderr
