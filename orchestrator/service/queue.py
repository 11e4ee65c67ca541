"""Who is next: priority first, then whose project uses least, then the oldest; within the limits.

Pure: the lists come in, an order and reasons come out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.registry.values import Project, Run


@dataclass(frozen=True)
class Usage:
    """What a project uses now, and has used of its day."""

    runs: int = 0
    workers: int = 0
    tokens: int = 0

    def with_run(self, run: Run) -> Usage:
        """The same with one more run at work."""
        return Usage(self.runs + 1, self.workers + run.workers, self.tokens + (run.tokens or 0))


@dataclass(frozen=True)
class Turn:
    """What was decided about one planned run."""

    run: Run
    waits: str = ""
    """Why not now; empty: now."""
    never: str = ""
    """Why not ever, under the limits as they are."""


@dataclass
class Books:
    """The usage of every project, kept while turns are given out."""

    usage: dict[str, Usage] = field(default_factory=dict)

    def of(self, project: str) -> Usage:
        """What the project uses."""
        return self.usage.get(project, Usage())

    def add(self, run: Run) -> None:
        """One more run of its project is at work."""
        self.usage[run.project] = self.of(run.project).with_run(run)


def turns(
    planned: Sequence[Run],
    books: Books,
    projects: Mapping[str, Project],
    room: int,
    held: Mapping[str, str],
) -> Iterable[Turn]:
    """A turn for each planned run, in the order in which they are served.

    `room`: jobs that the cluster may have still.
    `held`: runs that must wait whatever the room, and why. After each turn the order is looked at
    anew: a project that just got a run stands behind those that use less.
    """
    left = _in_order(planned, books)
    while left:
        run = left.popleft()
        turn = _turn(run, books, projects.get(run.project), room, held)
        if not turn.waits and not turn.never:
            books.add(run)
            room -= 1
            left = _in_order(left, books)
        yield turn


def _in_order(runs: Iterable[Run], books: Books) -> deque[Run]:
    return deque(sorted(runs, key=lambda run: _place(run, books)))


def _place(run: Run, books: Books) -> tuple[int, int, float, str]:
    return (-run.priority, books.of(run.project).workers, run.created_at, run.id)


def _turn(
    run: Run, books: Books, project: Project | None, room: int, held: Mapping[str, str]
) -> Turn:
    never, waits = _over_limits(run, books.of(run.project), project)
    if never:
        return Turn(run, never=never)
    if run.id in held:
        return Turn(run, waits=held[run.id])
    if room <= 0:
        return Turn(run, waits=f"cluster {run.cluster} has as many runs as it may have")
    return Turn(run, waits=waits)


def _over_limits(run: Run, usage: Usage, project: Project | None) -> tuple[str, str]:
    """Why the run can never start under its project's limits, and why it can't now."""
    if project is None:
        return "", ""
    limits = (
        (1, usage.runs, project.max_runs, "runs at once"),
        (run.workers, usage.workers, project.max_workers, "workers at once"),
        (run.tokens or 0, usage.tokens, project.max_tokens_a_day, "tokens in 24 hours"),
    )
    for needed, _, most, words in limits:
        if most is not None and needed > most:
            return f"it needs {needed:,} {words}, project {run.project} may use {most:,}", ""
    for needed, used, most, words in limits:
        if most is not None and used + needed > most:
            return "", f"project {run.project} uses {used:,} of its {most:,} {words}"
    return "", ""
