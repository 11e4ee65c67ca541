"""What Tune tells of the trials, written into the diary and said to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError
from ray.tune import Callback, Stopper

from jobs.search.diary import Diary
from jobs.search.door import Search
from jobs.search.rows import Row
from jobs.search.trainable import ASKED, Asked
from jobs.spec_file import dump_spec
from jobs.store.objects import open_store
from jobs.store.runs import SPEC, RunStore


class Watch(Callback):  # type: ignore[misc]  # Ray has no types that mypy may lean on
    """Keeps each trial's row up to date."""

    def __init__(self, search: Search, diary: Diary, say: Callable[[Row], None]) -> None:
        self._search, self._diary, self._say = search, diary, say
        self._began: dict[int, float] = {}
        self.why_over = ""
        """Which budget ended the search."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Of a trial that was paused too: it goes on."""
        row = self._row(trial)
        asked: Asked = trial.config[ASKED]
        runs = RunStore(open_store(asked.request.spec.store), row.run)
        runs.write_text(SPEC, dump_spec(asked.request.spec))
        # Anew where it was paused: it held nothing of the cluster meanwhile.
        self._began[row.number] = time.monotonic()
        if row.status != "running" or row.config != asked.config:
            self._say(self._diary.write(row, status="running", config=asked.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """An evaluation, or the end."""
        row = self._row(trial)
        metric, step = result.get("metric"), int(result["step"])
        curve = row.curve
        if metric is not None and all(step > at for at, _value in curve):
            curve = (*curve, (step, float(metric)))
        row = self._diary.write(
            row,
            metric=row.metric if metric is None else float(metric),
            curve=curve,
            steps=max(row.steps, step),
            tokens=max(row.tokens, int(result["tokens"])),
            seconds=row.seconds + self._since(row.number),
            shared=tuple(dict.fromkeys((*row.shared, *result["taken"]))),
        )
        if result["failed"]:
            self._diary.write(row, status="failed", reason=result["failed"])
        elif result["ended"]:
            self._diary.write(row, status="done")
        else:
            self._say(row)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Its own end, or the scheduler's decision, or the budget's."""
        row = self._row(trial)
        if not row.ended:
            scheduler = self._search.section.scheduler
            why = self.why_over or f"{scheduler} stopped it at step {row.steps}"
            row = self._diary.write(row, status="stopped", reason=why)
        self._say(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The trial's own actor died, more often than it may."""
        row = self._row(trial)
        if not row.ended:
            row = self._diary.write(row, status="failed", reason=_why(trial.get_pickled_error()))
        self._say(row)

    def _row(self, trial: Any) -> Row:
        found = self._diary.row(trial.config[ASKED].number)
        assert found is not None
        return found

    def _since(self, number: int) -> float:
        now = time.monotonic()
        began = self._began.get(number, now)
        self._began[number] = now
        return now - began


def _why(error: Exception | None) -> str:
    if isinstance(error, RayTaskError):
        said = " ".join(str(error.cause).split())[:500]
        return f"{type(error.cause).__name__}: {said}"
    return "its process died, more often than cluster.max_failures allows"


class BudgetStopper(Stopper):  # type: ignore[misc]  # Ray has no types that mypy may lean on
    """Ends the search when its tokens, its time or its money are spent."""

    def __init__(self, search: Search, diary: Diary, over: Callable[[str], None]) -> None:
        self._search, self._diary, self._over = search, diary, over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended by this alone."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune after every result."""
        why = spent(self._search, self._diary)
        if why is not None:
            self._over(why)
        return why is not None


def spent(search: Search, diary: Diary) -> str | None:
    """Which budget is used up, in words; None while none is."""
    budget, machine = search.section.budget, search.spec.cluster.machine
    if budget.tokens is not None and diary.tokens() >= budget.tokens:
        return f"the budget of {budget.tokens:,} tokens is spent"
    if budget.seconds is not None and diary.seconds() >= budget.seconds:
        return f"the budget of {budget.seconds:g} s is spent"
    if budget.cost is not None and machine.price_per_hour is not None:
        hours = sum(row.seconds * _machines(search, row) for row in diary.rows) / 3600
        if hours * machine.price_per_hour >= budget.cost:
            return f"the budget of {budget.cost:g} is spent"
    return None


def _machines(search: Search, row: Row) -> int:
    workers = int(row.config.get("cluster.workers", search.spec.workers))
    return -(-workers // (search.spec.cluster.machine.workers_per_node or workers))
