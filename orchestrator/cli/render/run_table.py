"""Runs for the terminal: a table, the details of one run, why it ended and what to do next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator.cli.console import format_duration, print_line, show_pairs, show_table
from orchestrator.schemas.runs import AttemptResponse, RunDetailResponse, RunResponse, StartResponse

REASONS = {
    "crashed": (
        "the training code raised an error; retrying will not help",
        "See `slora logs {run}`, fix it and resubmit.",
    ),
    "refused": ("its input is invalid", "Fix the input named in the detail and resubmit."),
    "outside": (
        "a system that it depends on did not answer",
        "Resubmit when that system is available again.",
    ),
    "unpublished": (
        "it succeeded without publishing an adapter",
        "See `slora logs {run}`; `slora adapters send-pending` on its machine sends the adapter.",
    ),
    "attempts": (
        "its job was lost more often than allowed",
        "See `slora clusters`, then resubmit to start from scratch.",
    ),
    "quota": ("it exceeds the limits of its project", "See `slora projects list`."),
    "internal": (
        "the service itself failed at it",
        "Give the error id in its detail to an operator: the service's log has the traceback.",
    ),
    "quarantined": (
        "the service skips it, because looking at it ended its process",
        "Ask an operator, who sees it in `slora registry quarantine list`.",
    ),
    "user": ("a user stopped it", "Resubmit to run it again."),
    "replaced": (
        "a newer run of its schedule replaced it",
        "Nothing to do: the newer run continues.",
    ),
    "job_absent": ("its cluster does not know the job", "Nothing to do: the service retries."),
    "preempted": ("its machine was preempted", "Nothing to do: the service retries."),
}
"""Why a run ended, and what to do next, by reason."""
MAX_STARTS = 3
"""Starts that are shown, the newest."""


def show_runs(runs: Sequence[RunResponse], *, now: float | None = None) -> None:
    """Print a table of runs in the given order."""
    moment = time.time() if now is None else now
    rows = [
        (
            run.id,
            run.status,
            run.kind,
            run.project,
            _format_age(run.created_at, moment),
            _format_reason(run),
        )
        for run in runs
    ]
    headers = ("run", "status", "kind", "project", "age", "why")
    show_table(rows, headers=headers, right=("age",), single_line=True)


def show_run(run: RunDetailResponse, starts: Sequence[StartResponse] = ()) -> None:
    """Print one run: its status, attempts, starts, why it ended and what to do next."""
    show_pairs(_format_pairs(run))
    if run.attempts:
        print_line("")
        headers = ("job", "status", "from (UTC)", "to", "why")
        show_table(
            [_format_attempt(attempt) for attempt in run.attempts],
            headers=headers,
            single_line=True,
        )
    for start in starts[-MAX_STARTS:]:
        print_line("")
        _show_start(start)
    print_line("")
    print_line(f"next: {suggest_next_step(run)}")


def _show_start(start: StartResponse) -> None:
    """Print the phases of a start as the columns of one table."""
    end = "until the first step ended" if start.complete else "so far"
    began = format_time(start.since)
    print_line(f"start of attempt {start.attempt}, {began} UTC: {start.wait_s:.1f} s {end}")
    rows = [(phase, f"{seconds:.2f}") for phase, seconds in start.phases.items()]
    show_table(rows, headers=("phase", "seconds"), right=("seconds",), single_line=True)


def suggest_next_step(run: RunResponse) -> str:
    """Return what the user can do next."""
    if run.reason is not None and run.reason in REASONS:
        return REASONS[run.reason][1].format(run=run.id)
    if run.status == "done" and run.detail:
        # It trained nothing, so there is no outcome to report.
        return f"slora logs {run.id}"
    if run.status == "done":
        return f"slora report {run.id} --store {run.store}"
    if run.stop is not None:
        return "A stop was requested. Check the status again in a moment."
    if run.status == "planned":
        return f"It is queued. slora stop {run.id} cancels it."
    return f"slora logs -f {run.id}"


def explain_status(run: RunResponse) -> str:
    """Return an explanation of the status, empty if there is none."""
    if run.reason is not None:
        return REASONS.get(run.reason, (run.reason,))[0]
    if run.stop is not None and not run.is_final:
        return "stop requested"
    return run.wait_reason


def dump_run(run: RunResponse) -> dict[str, Any]:
    """Return the run as plain values for JSON."""
    return {"attempts": [], **run.model_dump()}


def format_time(timestamp: float | None) -> str:
    """Format a time in UTC."""
    return (
        "-" if timestamp is None else f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S}"
    )


def _format_reason(run: RunResponse) -> str:
    return run.reason or explain_status(run)


def _format_pairs(run: RunResponse) -> list[tuple[str, str]]:
    reason = "" if run.reason is None else f" ({run.reason}: {explain_status(run)})"
    pairs = [
        ("run", run.id),
        ("status", f"{run.status}{reason}"),
        ("project", f"{run.project}, priority {run.priority}"),
        ("kind", f"{run.kind} of {run.name}"),
        ("cluster", f"{run.cluster}, {run.workers} worker{'s' if run.workers != 1 else ''}"),
        ("store", run.store),
        ("by", _format_maker(run)),
        ("created", f"{format_time(run.created_at)} UTC"),
        ("changed", f"{format_time(run.updated_at)} UTC"),
    ]
    pairs += [("tokens", f"{run.tokens:,} at most")] if run.tokens is not None else []
    pairs += [("search", run.search)] if run.search else []
    pairs += [("waiting", run.wait_reason)] if run.wait_reason and not run.is_final else []
    pairs += [("stop", f"requested: {run.stop}")] if run.stop and not run.is_final else []
    return pairs + ([("detail", run.detail)] if run.detail else [])


def _format_maker(run: RunResponse) -> str:
    if run.by_token is None:
        return run.by_label or "unknown"
    return f"{run.by_label} (token {run.by_token})"


def _format_attempt(attempt: AttemptResponse) -> tuple[str, ...]:
    began, ended = format_time(attempt.created_at)[5:], format_time(attempt.ended_at)[5:] or "-"
    return attempt.submission, attempt.status, began, ended, attempt.reason or ""


def _format_age(since: float, now: float) -> str:
    # Clocks differ, so an age may be negative. One unit leaves the width to the names of runs.
    return " ".join(format_duration(max(0.0, now - since)).split()[:2])
