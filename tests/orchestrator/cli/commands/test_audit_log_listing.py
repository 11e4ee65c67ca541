"""`slora audit-log`: who changed what, readable at 80 columns."""

from __future__ import annotations

import json

import pytest

from orchestrator.registry.tenancy import audit_log
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor
from tests.orchestrator.cli.commands.conftest import CommandHarness


def test_changes_are_listed_newest_first_with_their_makers(cli: CommandHarness):
    cli.ask("projects", "add", "lab", "--max-runs", "4")
    cli.ask("projects", "set", "lab", "--max-runs", "none", "--max-workers", "8")
    result = cli.ask("audit-log")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].endswith("UTC  test in lab from 127.0.0.1")
    assert lines[1:4] == [
        "    change project lab",
        "        max_runs: 4 → none",
        "        max_workers: none → 8",
    ]
    assert lines[5:] == ["    create project lab", "        max_runs: 4"]


def test_changes_are_selected(cli: CommandHarness):
    run = cli.api.submit()
    cli.ask("projects", "add", "lab")
    cli.ask("stop", run)
    entries = json.loads(cli.ask("audit-log", "--object", run, "--json").stdout)["entries"]
    assert [entry["action"] for entry in entries] == ["stop", "submit"]
    assert "submit" in cli.ask("audit-log", "--action", "submit", "--project", "default").stdout
    assert "No changes match" in cli.ask("audit-log", "--project", "other").stderr
    token = entries[0]["token"]
    listed = json.loads(cli.ask("audit-log", "--token", token, "--since", "1h", "--json").stdout)
    assert len(listed["entries"]) == 3 and listed["more"] is False
    assert "No changes match" in cli.ask("audit-log", "--since", "0m").stderr


def test_only_the_newest_are_listed_without_all(cli: CommandHarness):
    with cli.api.service.database.write() as session:
        for number in range(60):
            audit_log.record(
                session,
                SERVICE,
                action="stop",
                object_kind="job",
                object=f"j{number}",
                project=None,
            )
    result = cli.ask("audit-log")
    assert "stop job j10\n" in result.stdout and "stop job j9\n" not in result.stdout
    assert "the service\n" in result.stdout and "--all" in result.stderr
    assert "stop job j0\n" in cli.ask("audit-log", "--all").stdout


def test_what_others_wrote_does_not_move_the_cursor(cli: CommandHarness):
    with cli.api.service.database.write() as session:
        audit_log.record(
            session,
            Actor(label="\x1b[2J"),
            action="stop",
            object_kind="job",
            object="j",
            project=None,
            after={"reason": "\x1b]0;x\x07" + "y" * 500},
        )
    result = cli.ask("audit-log")
    assert "\x1b" not in result.stdout and "\x07" not in result.stdout
    assert all(len(line) <= 120 for line in result.stdout.splitlines())


@pytest.mark.parametrize("age", ["", "24", "h", "1y", "-1h", "1.5h", "99999999d"])
def test_an_age_that_is_none_is_an_error(cli: CommandHarness, age: str):
    result = cli.ask("audit-log", "--since", age)
    assert result.exit_code == 2 and "Use minutes, hours or days" in result.stderr


def test_a_submitter_may_not_read_it(cli: CommandHarness):
    result = cli.ask("audit-log", scope="submitter")
    assert result.exit_code == 3 and "requires the scope admin" in result.stderr


def test_a_run_shows_who_submitted_it(cli: CommandHarness):
    run = cli.api.submit()
    details = json.loads(cli.ask("runs", "show", run, "--json").stdout)
    assert details["by_label"] == "test"
    lines = cli.ask("runs", "show", run).stdout.splitlines()
    assert any(
        line.split() == ["by", "test", "(token", f"{details['by_token']})"] for line in lines
    )
