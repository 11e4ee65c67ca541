"""`slora schedule`: added, listed, paused, resumed, removed, and what came of its moments."""

from __future__ import annotations

import json

import pytest

from orchestrator.registry import schedules
from tests.orchestrator.cli.commands.conftest import Desk
from tests.orchestrator.cli.commands.test_submit import spec


@pytest.fixture
def nightly(desk: Desk) -> Desk:
    """With a schedule."""
    words = ("--cron", "0 3 * * *", "--time-zone", "Europe/Berlin", "--name", "nightly")
    result = desk.ask("schedule", "add", spec(desk), *words, "--only-new-data")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("schedule default/nightly is added; next 20")
    return desk


def test_a_schedule_is_listed_and_shown(nightly: Desk):
    lines = nightly.ask("schedule", "list").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].startswith("nightly") and "0 3 * * *" in lines[1]
    shown = nightly.ask("schedule", "show", "nightly").stdout
    assert "0 3 * * * (Europe/Berlin)" in shown and "finetune, only on new data" in shown
    told = json.loads(nightly.ask("schedule", "show", "nightly", "--json").stdout)
    assert told["spec"]["name"] == "tiny" and told["concurrency"] == "skip"


def test_a_schedule_is_paused_and_goes_on(nightly: Desk):
    assert nightly.ask("schedule", "pause", "nightly").stdout.endswith("nightly is paused.\n")
    assert "paused" in nightly.ask("schedule", "list").stdout
    assert "goes on; next 20" in nightly.ask("schedule", "resume", "nightly").stdout
    assert "paused" not in nightly.ask("schedule", "list").stdout


def test_a_schedule_that_is_removed_is_gone(nightly: Desk):
    told = nightly.ask("schedule", "remove", "nightly", "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout) == {"removed": "nightly", "project": "default"}
    result = nightly.ask("schedule", "show", "nightly")
    assert result.exit_code == 2 and "nightly" in result.stderr
    assert "No schedules yet" in nightly.ask("schedule", "list").stderr


def test_its_firings_are_told_the_newest_first(nightly: Desk):
    assert "has not fired yet" in nightly.ask("schedule", "firings", "nightly").stderr
    with nightly.door.service.database.write() as session:
        there = schedules.get(session, "default", "nightly")
        for due in (1e9, 1e9 + 60):
            there = schedules.fire(
                session, there, due_at=due, next_at=None, outcome="no_new_data", fired_at=due + 1
            )
    lines = nightly.ask("schedule", "firings", "nightly").stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["01:47:40", "01:46:40"]
    assert all("no_new_data" in line for line in lines[1:])
    assert (
        len(nightly.ask("schedule", "firings", "nightly", "--limit", "1").stdout.splitlines()) == 2
    )


def test_what_the_service_refuses_is_exit_code_two(desk: Desk):
    result = desk.ask("schedule", "add", spec(desk), "--cron", "61 3 * * *")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cron" in result.stderr and "Traceback" not in result.output
    result = desk.ask("schedule", "add", spec(desk), "--cron", "0 3 * * *", "--missed", "some")
    assert result.exit_code == 2 and "missed" in result.stderr


def test_a_token_of_a_project_means_its_schedules(desk: Desk):
    words = ("schedule", "add", spec(desk), "--cron", "0 3 * * *")
    result = desk.ask(*words, scope="submitter", project="other")
    assert result.stdout.startswith("schedule other/tiny is added")
    assert desk.ask("schedule", "pause", "tiny", scope="submitter", project="other").exit_code == 0
    # The name alone is one of the default project, for who sees all of them.
    assert desk.ask("schedule", "show", "tiny").exit_code == 2
    assert desk.ask("schedule", "show", "tiny", "--project", "other").exit_code == 0
