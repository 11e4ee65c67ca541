"""`slora runs`, `stop` and `logs`: lists, details, stops and output of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from orchestrator.api.app import make_app
from orchestrator.registry import runs
from orchestrator.registry.lifecycle import Reason, Status
from tests.orchestrator.api.builders import serve_app
from tests.orchestrator.cli.commands.conftest import CommandHarness
from tests.orchestrator.phase_events import write_phases

SLORA = str(Path(sys.executable).parent / "slora")
TO_DONE = (Status.SUBMITTED, Status.RUNNING, Status.PUBLISHING, Status.DONE)


def test_runs_are_a_table_that_fits_eighty_columns(cli: CommandHarness):
    first, second = cli.api.submit(), cli.api.submit("other")
    cli.api.move(first, Status.SUBMITTED, Status.LOST, reason=Reason.JOB_ABSENT)
    result = cli.ask("runs")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["run", "status", "kind", "project", "age", "why"]
    assert [line.split()[:2] for line in lines[1:]] == [[second, "planned"], [first, "lost"]]
    assert lines[2].endswith(" job_absent")


def test_runs_are_filtered_and_json_has_all_their_fields(cli: CommandHarness):
    first, second = cli.api.submit(), cli.api.submit("other")
    cli.api.move(first, Status.STOPPED, reason=Reason.USER)
    ids = lambda *words: [  # noqa: E731
        run["id"] for run in json.loads(cli.ask("runs", "--json", *words).stdout)["runs"]
    ]
    assert ids() == [second, first]
    assert ids("--status", "stopped") == [first] == ids("--project", "default")
    assert ids("--kind", "search") == []
    assert cli.ask("runs", "--status", "lots").exit_code == 2


def test_a_token_sees_its_project_alone(cli: CommandHarness):
    mine, others = cli.api.submit("other"), cli.api.submit()
    result = cli.ask("runs", scope="viewer", project="other")
    assert mine in result.stdout and others not in result.stdout
    result = cli.ask("runs", "show", others, scope="viewer", project="other")
    assert result.exit_code == 2 and "is not in the registry" in result.stderr


def test_only_the_newest_twenty_runs_are_listed_by_default(cli: CommandHarness):
    runs = [cli.api.submit() for _ in range(21)]
    result = cli.ask("runs")
    assert len(result.stdout.splitlines()) == 21 and runs[0] not in result.stdout
    assert "Use --all" in result.stderr
    assert runs[0] in cli.ask("runs", "--all").stdout
    assert json.loads(cli.ask("runs", "--json").stdout)["more"] is True


def test_a_run_is_shown_with_its_attempts_its_reason_and_the_next_step(cli: CommandHarness):
    run = cli.api.submit()
    cli.api.move(run, Status.SUBMITTED, Status.LOST, reason=Reason.JOB_ABSENT)
    cli.api.move(run, Status.PLANNED, Status.SUBMITTED, Status.RUNNING)
    cli.api.move(run, Status.FAILED, reason=Reason.CRASHED)
    result = cli.ask("runs", "show", run)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    text = " ".join(result.stdout.split())
    assert "failed (crashed: the training code raised an error" in text
    assert f"{run}-a1" in text and f"{run}-a2" in text
    assert f"next: See `slora logs {run}`, fix it and resubmit." in text
    details = json.loads(cli.ask("runs", "show", run, "--json").stdout)
    assert [run["number"] for run in details["attempts"]] == [1, 2]


def test_a_run_is_shown_with_the_phases_of_its_start(cli: CommandHarness):
    run = cli.api.submit()
    write_phases(RunStore(open_store(cli.api.service.config.stores[0]), run))
    result = cli.ask("runs", "show", run)
    assert result.exit_code == 0 and "\x1b" not in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    text = " ".join(result.stdout.split())
    assert "start of attempt 1" in text and "4.0 s until the first step ended" in text
    assert "phase seconds queue 1.50 base 2.00 first_step 0.50" in text
    details = json.loads(cli.ask("runs", "show", run, "--json").stdout)
    assert [start["wait_s"] for start in details["starts"]] == [4.0, 9.0]


@pytest.mark.parametrize(
    ("detail", "command"), [("", "report"), ("nothing new to learn from", "logs")]
)
def test_the_next_step_of_a_run_without_new_data_is_its_log(
    cli: CommandHarness, detail: str, command: str
):
    run = cli.api.submit()
    cli.api.move(run, *TO_DONE[:-1])
    with cli.api.service.database.write() as session:
        runs.move(session, runs.get(session, run), Status.DONE, detail=detail)
    text = " ".join(cli.ask("runs", "show", run).stdout.split())
    assert f"next: slora {command} {run}" in text


def test_every_reason_has_an_explanation_and_a_next_step():
    from orchestrator.cli.render.run_table import REASONS

    assert set(REASONS) == {reason.value for reason in Reason}


def test_a_run_is_stopped_and_a_finished_run_stays_unchanged(cli: CommandHarness):
    run = cli.api.submit()
    assert "Requested a stop" in cli.ask("stop", run).stdout
    assert cli.ask("stop", run).exit_code == 0
    assert cli.api.request("GET", f"/v1/runs/{run}").json()["stop"] == "user"
    cli.api.move(run, Status.STOPPED, reason=Reason.USER)
    assert f"{run} has already ended: stopped." in cli.ask("stop", run).stdout
    assert cli.ask("stop", "chat-20260101-000000-ffff").exit_code == 2


def test_a_log_is_what_was_printed_byte_for_byte(cli: CommandHarness):
    run = cli.api.submit()
    printed = "a\tb\r 10%\x1b[2J\n\N{SNOWMAN}\x0b\x85 end".encode()
    cli.api.cluster.logs[f"{run}-a1"] = printed
    cli.api.move(run, *TO_DONE)
    for words in ([run], ["-f", run]):
        result = cli.ask("logs", *words)
        assert (result.exit_code, result.stdout_bytes) == (0, printed)


def test_the_log_of_a_run_without_output_shows_its_status(cli: CommandHarness):
    run = cli.api.submit()
    result = cli.ask("logs", run)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{run} has no output yet. Its status is planned" in result.stderr


def test_following_a_failed_run_exits_with_one(cli: CommandHarness):
    run = cli.api.submit()
    cli.api.move(run, Status.SUBMITTED, Status.FAILED, reason=Reason.REFUSED)
    result = cli.ask("logs", "-f", run)
    assert result.exit_code == 1 and "its input is invalid" in result.stderr
    # Without -f, printing the log succeeds whatever the status of the run.
    assert cli.ask("logs", run).exit_code == 0


def test_a_followed_log_survives_a_restart_of_the_service(cli: CommandHarness):
    run = cli.api.submit()
    cli.api.move(run, Status.SUBMITTED, Status.RUNNING)
    log, job = cli.api.cluster.logs, f"{run}-a1"
    log[job] = b"before \xe2\x98"  # half of a snowman
    with serve_app(cli.api.app) as url:
        details = subprocess.Popen(
            [SLORA, "logs", "-f", run],
            env={**os.environ, **cli.environment(), "SLORA_SERVICE": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert details.stdout is not None
        started = details.stdout.read(7)
    # The service is down while the job continues.
    log[job] += b"\x83 after\n"
    cli.api.move(run, Status.PUBLISHING, Status.DONE)
    with serve_app(make_app(cli.api.service), int(url.rpartition(":")[2])):
        rest, stderr = details.communicate(timeout=60)
    assert (started + rest).decode() == "before \N{SNOWMAN} after\n"
    assert details.returncode == 0
    assert b"trying again" in stderr and b"done" in stderr


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

    text = Terminal()
    make_writer(text)("a\tb\r50%\x1b[2J\n\x07")  # type: ignore[arg-type]
    assert "".join(text) == "a\tb\r50%\\x1b[2J\n\\x07"


def test_run_names_are_completed_from_the_service_and_silently_without_it(cli: CommandHarness):
    run = cli.api.submit()
    line = {"_SLORA_COMPLETE": "complete_bash", "COMP_WORDS": "slora logs ch", "COMP_CWORD": "2"}

    def completed(**changes: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **cli.environment(), **line, **changes}
        return subprocess.run([SLORA], env=environment, capture_output=True, text=True, timeout=60)

    done = completed()
    assert (done.stdout.split(), done.stderr) == ([run], "")
    for changes in ({"SLORA_SERVICE": "http://127.0.0.1:9"}, {"SLORA_TOKEN": "wrong words"}):
        done = completed(**changes)
        assert (done.stdout.strip(), done.stderr) == ("", "")


def test_ended_runs_are_deleted_and_active_ones_are_not(cli: CommandHarness):
    first, second, active = (cli.api.submit() for _ in range(3))
    for run in (first, second):
        cli.api.move(run, Status.STOPPED, reason=Reason.USER)
    result = cli.ask("runs", "delete", first, second)
    assert result.exit_code == 0, result.output
    assert [line.split()[:3] for line in result.stdout.splitlines()] == [
        ["Deleted", "run", first],
        ["Deleted", "run", second],
    ]
    refused = cli.ask("runs", "delete", active)
    assert refused.exit_code == 1 and "it is planned" in refused.stderr
    listed = json.loads(cli.ask("runs", "--json").stdout)["runs"]
    assert [run["id"] for run in listed] == [active]
