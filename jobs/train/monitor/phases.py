"""The phases of a run's start: from its submission to the end of its first optimizer step.

Each phase begins where the one before ended, so they sum to the wait. The command, the job's
driver and rank 0 each end their own phases, on up to three hosts: where a clock is behind the last
one, the phase counts as zero seconds; where it is ahead, its lead counts as part of the phase. No
torch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

PHASES = {
    "queue": "waiting for the job's process: in the service's queue, and for Ray to start it",
    "check": "the input is checked and the rows are tokenised, by the command or the job",
    "ray": "the job's driver loads Ray and joins it; without a running Ray, one starts",
    "placement": "waiting for the workers' CPUs and GPUs",
    "processes": "the workers' processes start and join their process group",
    "imports": "the workers load torch and transformers, and DeepSpeed if the run needs it",
    "base": "the base is loaded, and its packing is tried",
    "data": "the tokenised rows are opened, and the plan is completed",
    "compile": "the first stage's layers are installed, and its engine is made",
    "evaluation": "the held-out rows are evaluated before training",
    "first_step": "the first optimizer step",
}
"""In their order; a run has those that apply to its kind."""
LAST_PHASE = "first_step"
MAX_STARTS = 100
"""A run's newest starts that are shown; a run restarts at most a few times."""
MAX_SECONDS = 10 * 366 * 86_400.0
MAX_PROCESS_AGE_S = 86_400.0
"""An older process did not start for this call, or its clock can't be trusted."""


class EventJournal(Protocol):
    """The part of a run's journal of events that is used."""

    def append(self, event: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class PhaseStart:
    """Where the next phase of a run's start begins; crosses processes by pickle."""

    since: float
    """When the wait began, in seconds since 1970; it names the start among those of its run."""
    at: float
    """When the last phase ended."""
    attempt: int = 0

    @classmethod
    def begin(cls, attempt: int, at: float | None = None) -> Self:
        """Return a wait that begins at a time, by default now."""
        moment = time.time() if at is None else at
        return cls(moment, moment, attempt)


class PhaseClock:
    """Ends one phase after the other, and records each as an event."""

    def __init__(
        self, journal: EventJournal, start: PhaseStart, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._journal, self._clock = journal, clock
        self.start = start

    def end(self, phase: str, at: float | None = None) -> None:
        """End a phase at a time, by default now. After the last phase, do nothing."""
        if phase not in PHASES:
            raise ValueError(f"{phase!r} is not a phase of a run's start. Use one of PHASES.")
        started = self.start.at
        if math.isinf(started):
            return
        ended = max(started, self._clock() if at is None else at)
        event = {"event": "phase_ended", "time": ended, "phase": phase, "started": started}
        wait = {"seconds": ended - started, "attempt": self.start.attempt}
        self._journal.append({**event, **wait, "since": self.start.since})
        ended = math.inf if phase == LAST_PHASE else ended
        self.start = PhaseStart(self.start.since, ended, self.start.attempt)


def end_phase(
    journal: EventJournal, start: PhaseStart, phase: str, at: float | None = None
) -> PhaseStart:
    """Record the end of one phase at a time, by default now; return where the next begins."""
    clock = PhaseClock(journal, start)
    clock.end(phase, at)
    return clock.start


def begin_job_phases(
    journal: EventJournal, attempt: int, *, submitted: float | None, checked: float | None
) -> PhaseClock:
    """Return the clock of a job's driver, after the phases that ended before its process started.

    `submitted` is when the run was submitted, `checked` when the command had checked its input;
    None where nobody told: then the wait begins with this process.
    """
    process = find_process_start()
    since = process if submitted is None else min(submitted, process)
    clock = PhaseClock(journal, PhaseStart.begin(attempt, since))
    if checked is not None:
        clock.end("check", min(checked, process))
    if submitted is not None:
        clock.end("queue", process)
    return clock


def find_process_start() -> float:
    """Return when this process started, in seconds since 1970: on Linux to 10 ms, elsewhere now."""
    now = time.time()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - age if 0 <= age <= MAX_PROCESS_AGE_S else now


@dataclass(frozen=True)
class RunStart:
    """The phases of one start of a run: of an attempt, or of workers that were restarted."""

    attempt: int
    since: float
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase, in the order of PHASES."""

    @property
    def wait_s(self) -> float:
        """Return the seconds of all phases so far."""
        return sum(self.phases.values())

    @property
    def is_complete(self) -> bool:
        """Return whether the first step has ended."""
        return LAST_PHASE in self.phases

    def to_json(self) -> dict[str, Any]:
        """Return the start as plain values."""
        wait = {"wait_s": self.wait_s, "complete": self.is_complete}
        return {
            "attempt": self.attempt,
            "since": self.since,
            **wait,
            "phases": dict(self.phases),
        }


def collect_starts(events: Iterable[Mapping[str, Any]]) -> list[RunStart]:
    """Return the starts of a run by its events, the oldest first, at most MAX_STARTS.

    The events may be anybody's: one whose values are not those of a phase is left out.
    """
    seconds_by_start: dict[tuple[int, float], dict[str, float]] = {}
    for event in events:
        if event.get("event") != "phase_ended" or (entry := _read_phase(event)) is None:
            continue
        attempt, since, phase, seconds = entry
        phases = seconds_by_start.setdefault((attempt, since), {})
        # The input is checked by the command, and its result read again by the job.
        phases[phase] = min(phases.get(phase, 0.0) + seconds, MAX_SECONDS)
        if len(seconds_by_start) > MAX_STARTS:
            del seconds_by_start[next(iter(seconds_by_start))]
    return [
        RunStart(attempt, since, {name: phases[name] for name in PHASES if name in phases})
        for (attempt, since), phases in seconds_by_start.items()
    ]


def describe_start(start: RunStart) -> str:
    """Return a start in words: the wait, and its phases of a tenth of a second or more."""
    parts = [f"{name} {seconds:.1f}" for name, seconds in start.phases.items() if seconds >= 0.05]
    end = "to the end of the first step" if start.is_complete else "so far"
    return f"{start.wait_s:.1f} s {end}: {', '.join(parts)}"


def _read_phase(event: Mapping[str, Any]) -> tuple[int, float, str, float] | None:
    phase, attempt = event.get("phase"), event.get("attempt")
    if not isinstance(phase, str) or phase not in PHASES:
        return None
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not 0 <= attempt < 10**6:
        return None
    since, seconds = _read_number(event.get("since")), _read_number(event.get("seconds"))
    return None if since is None or seconds is None else (attempt, since, phase, seconds)


def _read_number(value: object) -> float | None:
    """Return a number of seconds between 0 and MAX_SECONDS (for times: 200 years), or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Compared before it is converted: an integer may be too large for a float.
    return float(value) if 0 <= value <= 20 * MAX_SECONDS else None
