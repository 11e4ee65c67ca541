"""`slora runs`, `stop` and `logs`: what is there, what became of it, and what it printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.api.app import make_app
from orchestrator.registry import runs
from orchestrator.registry.lifecycle import Reason, Status
from tests.orchestrator.api.builders import serve_app
from tests.orchestrator.cli.commands.conftest import Desk

SLORA = str(Path(sys.executable).parent / "slora")
TO_DONE = (Status.SUBMITTED, Status.RUNNING, Status.PUBLISHING, Status.DONE)


def test_runs_are_a_table_that_fits_eighty_columns(desk: Desk):
    first, second = desk.door.submit(), desk.door.submit("other")
    desk.door.move(first, Status.SUBMITTED, Status.LOST, reason=Reason.JOB_ABSENT)
    result = desk.ask("runs")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["run", "status", "kind", "project", "age", "why"]
    assert [line.split()[:2] for line in lines[1:]] == [[second, "planned"], [first, "lost"]]
    assert lines[2].endswith(" job_absent")


def test_runs_are_filtered_and_programs_get_all_of_them(desk: Desk):
    first, second = desk.door.submit(), desk.door.submit("other")
    desk.door.move(first, Status.STOPPED, reason=Reason.USER)
    ids = lambda *words: [  # noqa: E731
        one["id"] for one in json.loads(desk.ask("runs", "--json", *words).stdout)["runs"]
    ]
    assert ids() == [second, first]
    assert ids("--status", "stopped") == [first] == ids("--project", "default")
    assert ids("--kind", "search") == []
    assert desk.ask("runs", "--status", "lots").exit_code == 2


def test_a_token_sees_its_project_alone(desk: Desk):
    mine, others = desk.door.submit("other"), desk.door.submit()
    result = desk.ask("runs", scope="viewer", project="other")
    assert mine in result.stdout and others not in result.stdout
    result = desk.ask("runs", others, scope="viewer", project="other")
    assert result.exit_code == 2 and "is not in the registry" in result.stderr


def test_the_newest_twenty_are_shown_and_the_others_are_named(desk: Desk):
    runs = [desk.door.submit() for _ in range(21)]
    result = desk.ask("runs")
    assert len(result.stdout.splitlines()) == 21 and runs[0] not in result.stdout
    assert "Older ones: --all" in result.stderr
    assert runs[0] in desk.ask("runs", "--all").stdout
    assert json.loads(desk.ask("runs", "--json").stdout)["more"] is True


def test_one_run_tells_its_attempts_why_it_ended_and_what_to_do(desk: Desk):
    run = desk.door.submit()
    desk.door.move(run, Status.SUBMITTED, Status.LOST, reason=Reason.JOB_ABSENT)
    desk.door.move(run, Status.PLANNED, Status.SUBMITTED, Status.RUNNING)
    desk.door.move(run, Status.FAILED, reason=Reason.CRASHED)
    result = desk.ask("runs", run)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    shown = " ".join(result.stdout.split())
    assert "failed (crashed: its code failed" in shown
    assert f"{run}-a1" in shown and f"{run}-a2" in shown
    assert f"next: Read `slora logs {run}`, mend, submit." in shown
    told = json.loads(desk.ask("runs", run, "--json").stdout)
    assert [one["number"] for one in told["attempts"]] == [1, 2]


@pytest.mark.parametrize(
    ("detail", "command"), [("", "report"), ("nothing new to learn from", "logs")]
)
def test_a_run_that_learnt_nothing_has_a_log_and_no_report(desk: Desk, detail: str, command: str):
    run = desk.door.submit()
    desk.door.move(run, *TO_DONE[:-1])
    with desk.door.service.database.write() as session:
        runs.move(session, runs.get(session, run), Status.DONE, detail=detail)
    shown = " ".join(desk.ask("runs", run).stdout.split())
    assert f"next: slora {command} {run}" in shown


def test_every_reason_has_words_and_a_way_out():
    from orchestrator.cli.render.run_table import REASONS

    assert set(REASONS) == {reason.value for reason in Reason}


def test_a_run_is_stopped_once_and_one_that_is_over_stays(desk: Desk):
    run = desk.door.submit()
    assert "asked to end" in desk.ask("stop", run).stdout
    assert desk.ask("stop", run).exit_code == 0
    assert desk.door.request("GET", f"/v1/runs/{run}").json()["stop"] == "user"
    desk.door.move(run, Status.STOPPED, reason=Reason.USER)
    assert f"{run} is over already: stopped." in desk.ask("stop", run).stdout
    assert desk.ask("stop", "chat-20260101-000000-ffff").exit_code == 2


def test_a_log_is_what_was_printed_byte_for_byte(desk: Desk):
    run = desk.door.submit()
    printed = "a\tb\r 10%\x1b[2J\n\N{SNOWMAN}\x0b\x85 end".encode()
    desk.door.cluster.logs[f"{run}-a1"] = printed
    desk.door.move(run, *TO_DONE)
    for words in ([run], ["-f", run]):
        result = desk.ask("logs", *words)
        assert (result.exit_code, result.stdout_bytes) == (0, printed)


def test_a_run_that_has_printed_nothing_says_where_it_stands(desk: Desk):
    run = desk.door.submit()
    result = desk.ask("logs", run)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{run} has printed nothing yet; it is planned" in result.stderr


def test_a_followed_log_of_a_failed_run_is_exit_code_one(desk: Desk):
    run = desk.door.submit()
    desk.door.move(run, Status.SUBMITTED, Status.FAILED, reason=Reason.REFUSED)
    result = desk.ask("logs", "-f", run)
    assert result.exit_code == 1 and "its input is wrong" in result.stderr
    # Without -f it is the log that was asked for, and it was told.
    assert desk.ask("logs", run).exit_code == 0


def test_a_followed_log_survives_a_restart_of_the_service(desk: Desk):
    run = desk.door.submit()
    desk.door.move(run, Status.SUBMITTED, Status.RUNNING)
    log, job = desk.door.cluster.logs, f"{run}-a1"
    log[job] = b"before \xe2\x98"  # half of a snowman
    with serve_app(desk.door.app) as url:
        told = subprocess.Popen(
            [SLORA, "logs", "-f", run],
            env={**os.environ, **desk.environment(), "SLORA_SERVICE": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert told.stdout is not None
        begun = told.stdout.read(7)
    # It is down. Meanwhile the job goes on.
    log[job] += b"\x83 after\n"
    desk.door.move(run, Status.PUBLISHING, Status.DONE)
    with serve_app(make_app(desk.door.service), int(url.rpartition(":")[2])):
        rest, said = told.communicate(timeout=60)
    assert (begun + rest).decode() == "before \N{SNOWMAN} after\n"
    assert told.returncode == 0
    assert b"trying again" in said and b"done" in said


def test_what_a_job_prints_can_not_move_a_terminals_cursor():
    from orchestrator.cli.follow_remote import make_writer

    class Terminal(list[str]):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.append(text)
            return len(text)

        def flush(self) -> None:
            pass

    shown = Terminal()
    make_writer(shown)("a\tb\r50%\x1b[2J\n\x07")  # type: ignore[arg-type]
    assert "".join(shown) == "a\tb\r50%\\x1b[2J\n\\x07"


def test_run_names_complete_from_the_service_and_silently_where_there_is_none(desk: Desk):
    run = desk.door.submit()
    line = {"_SLORA_COMPLETE": "complete_bash", "COMP_WORDS": "slora logs ch", "COMP_CWORD": "2"}

    def completed(**changes: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **desk.environment(), **line, **changes}
        return subprocess.run([SLORA], env=environment, capture_output=True, text=True, timeout=60)

    done = completed()
    assert (done.stdout.split(), done.stderr) == ([run], "")
    for changes in ({"SLORA_SERVICE": "http://127.0.0.1:9"}, {"SLORA_TOKEN": "wrong words"}):
        done = completed(**changes)
        assert (done.stdout.strip(), done.stderr) == ("", "")
