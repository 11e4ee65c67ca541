"""Runs in words: a table of many, the details of one, why it ended and what to do next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from orchestrator.cli.console import format_duration, print_line, show_pairs, show_table
from orchestrator.client.values import AttemptResponse, RunResponse

REASONS = {
    "crashed": ("its code failed, which repeats itself", "Read `slora logs {run}`, mend, submit."),
    "refused": ("its input is wrong", "Mend what the detail names, and submit again."),
    "outside": ("something that it needs did not answer", "Submit it again once that is back."),
    "unpublished": (
        "it ended well and left no adapter",
        "Read `slora logs {run}`; `slora adapters recover` sends what waits on its machine.",
    ),
    "attempts": (
        "it was lost more often than it may be",
        "Look at `slora clusters`; submitted again it begins anew.",
    ),
    "quota": ("it is above what its project may use", "See `slora projects list`."),
    "user": ("somebody stopped it", "Submit it again to have it."),
    "replaced": ("a newer firing of its schedule took its place", "Nothing: the newer one runs."),
    "job_absent": ("its cluster does not know the job", "Nothing: the service tries again."),
    "preempted": ("its machine was taken away", "Nothing: the service tries again."),
}
"""Why a run did not go on, and what to do about it."""


def show_runs(runs: Sequence[RunResponse], *, now: float | None = None) -> None:
    """A table, as the runs come."""
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


def show_run(run: RunResponse) -> None:
    """One run: where it is, its attempts, why it ended, what to do next."""
    show_pairs(_format_pairs(run))
    if run.attempts:
        print_line("")
        headers = ("job", "status", "from (UTC)", "to", "why")
        show_table(
            [_format_attempt(attempt) for attempt in run.attempts],
            headers=headers,
            single_line=True,
        )
    print_line("")
    print_line(f"next: {suggest_next_step(run)}")


def suggest_next_step(run: RunResponse) -> str:
    """What whoever looks at it may do now."""
    if run.reason is not None and run.reason in REASONS:
        return REASONS[run.reason][1].format(run=run.id)
    if run.status == "done" and run.detail:
        # It learnt nothing: there are no figures to report.
        return f"slora logs {run.id}"
    if run.status == "done":
        return f"slora report {run.id} --store {run.store}"
    if run.stop is not None:
        return "It was asked to end: look again in a moment."
    if run.status == "planned":
        return f"It waits for its turn. slora stop {run.id} takes it out."
    return f"slora logs -f {run.id}"


def explain_status(run: RunResponse) -> str:
    """The one thing that there is to say about it besides its status."""
    if run.reason is not None:
        return REASONS.get(run.reason, (run.reason,))[0]
    if run.stop is not None and not run.is_final:
        return "asked to stop"
    return run.wait_reason


def dump_run(run: RunResponse) -> dict[str, Any]:
    """For programs."""
    return {**asdict(run), "attempts": [asdict(attempt) for attempt in run.attempts]}


def format_time(timestamp: float | None) -> str:
    """A moment for people, in UTC."""
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
        ("created", f"{format_time(run.created_at)} UTC"),
        ("changed", f"{format_time(run.updated_at)} UTC"),
    ]
    pairs += [("tokens", f"{run.tokens:,} at most")] if run.tokens is not None else []
    pairs += [("search", run.search)] if run.search else []
    pairs += [("waits", run.wait_reason)] if run.wait_reason and not run.is_final else []
    pairs += [("stop", f"asked for: {run.stop}")] if run.stop and not run.is_final else []
    return pairs + ([("detail", run.detail)] if run.detail else [])


def _format_attempt(attempt: AttemptResponse) -> tuple[str, ...]:
    began, ended = format_time(attempt.created_at)[5:], format_time(attempt.ended_at)[5:] or "-"
    return attempt.submission, attempt.status, began, ended, attempt.reason or ""


def _format_age(since: float, now: float) -> str:
    # Clocks differ; nothing is younger than now. In one unit: the width is for the runs' names.
    return " ".join(format_duration(max(0.0, now - since)).split()[:2])
