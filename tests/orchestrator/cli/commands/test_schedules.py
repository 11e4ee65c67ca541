"""`slora schedules`: add, list, show, pause, resume, remove, and the outcomes of firings."""

from __future__ import annotations

import json

import pytest

from orchestrator.registry import schedules
from tests.orchestrator.cli.commands.conftest import CommandHarness
from tests.orchestrator.cli.commands.test_submit import spec


@pytest.fixture
def nightly(cli: CommandHarness) -> CommandHarness:
    """Return a command line whose service has a schedule."""
    words = ("--cron", "0 3 * * *", "--time-zone", "Europe/Berlin", "--name", "nightly")
    result = cli.ask("schedules", "add", spec(cli), *words, "--only-new-data")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Added schedule default/nightly; next 20")
    return cli


def test_a_schedule_is_listed_and_shown(nightly: CommandHarness):
    lines = nightly.ask("schedules", "list").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].startswith("nightly") and "0 3 * * *" in lines[1]
    text = nightly.ask("schedules", "show", "nightly").stdout
    assert "0 3 * * * (Europe/Berlin)" in text and "finetune, only on new data" in text
    values = json.loads(nightly.ask("schedules", "show", "nightly", "--json").stdout)
    assert values["spec"]["name"] == "tiny" and values["concurrency"] == "skip"


def test_a_schedule_is_paused_and_resumed(nightly: CommandHarness):
    assert (
        nightly.ask("schedules", "pause", "nightly").stdout == "Paused schedule default/nightly.\n"
    )
    assert "paused" in nightly.ask("schedules", "list").stdout
    assert (
        "Resumed schedule default/nightly; next 20"
        in nightly.ask("schedules", "resume", "nightly").stdout
    )
    assert "paused" not in nightly.ask("schedules", "list").stdout


def test_a_removed_schedule_no_longer_exists(nightly: CommandHarness):
    values = nightly.ask("schedules", "remove", "nightly", "--json")
    assert values.exit_code == 0
    assert json.loads(values.stdout) == {"removed": "nightly", "project": "default"}
    result = nightly.ask("schedules", "show", "nightly")
    assert result.exit_code == 2 and "nightly" in result.stderr
    assert "No schedules yet" in nightly.ask("schedules", "list").stderr


def test_firings_are_listed_newest_first(nightly: CommandHarness):
    assert "has not fired yet" in nightly.ask("schedules", "firings", "nightly").stderr
    with nightly.api.service.database.write() as session:
        schedule = schedules.get(session, "default", "nightly")
        for due in (1e9, 1e9 + 60):
            schedule = schedules.fire(
                session, schedule, due_at=due, next_at=None, outcome="no_new_data", fired_at=due + 1
            )
    lines = nightly.ask("schedules", "firings", "nightly").stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["01:47:40", "01:46:40"]
    assert all("no_new_data" in line for line in lines[1:])
    assert (
        len(nightly.ask("schedules", "firings", "nightly", "--limit", "1").stdout.splitlines()) == 2
    )


def test_a_refusal_of_the_service_exits_with_two(cli: CommandHarness):
    result = cli.ask("schedules", "add", spec(cli), "--cron", "61 3 * * *")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cron" in result.stderr and "Traceback" not in result.output
    result = cli.ask("schedules", "add", spec(cli), "--cron", "0 3 * * *", "--missed", "some")
    assert result.exit_code == 2 and "missed" in result.stderr


def test_the_project_of_a_token_determines_its_schedules(cli: CommandHarness):
    words = ("schedules", "add", spec(cli), "--cron", "0 3 * * *")
    result = cli.ask(*words, scope="submitter", project="other")
    assert result.stdout.startswith("Added schedule other/tiny")
    assert cli.ask("schedules", "pause", "tiny", scope="submitter", project="other").exit_code == 0
    # For a token of all projects, a name alone refers to the default one.
    assert cli.ask("schedules", "show", "tiny").exit_code == 2
    assert cli.ask("schedules", "show", "tiny", "--project", "other").exit_code == 0
