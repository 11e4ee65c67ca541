"""Tune's searcher: our proposals in their order, each planned before it may start."""

from __future__ import annotations

import dataclasses
from typing import Any

from ray.tune.search import Searcher

from jobs.model_files import model_digest
from jobs.preflight import Checked
from jobs.request import Request
from jobs.search.diary import Diary
from jobs.search.door import Search
from jobs.search.planned import Planned, planned
from jobs.search.rows import Row
from jobs.search.space import Config, count, drawn_ahead, learnt
from jobs.search.trainable import ASKED, Asked


class Proposals(Searcher):  # type: ignore[misc]  # Ray has no types that mypy may lean on
    """Proposes what has not ended yet, in an earlier try of the search or in this one."""

    def __init__(self, search: Search, checked: Checked, diary: Diary, *, run: str) -> None:
        super().__init__(metric="metric", mode=search.section.direction)
        self._search, self._checked, self._diary, self._run = search, checked, diary, run
        self._ahead = drawn_ahead(search.section)
        self._count = count(search.section)
        self._digests = {checked.spec.model.path: model_digest(checked.model.folder)}
        self._next, self._live = 0, dict[str, int]()
        self.over = False
        """Set when the budget is spent: nothing more is proposed."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial that may run; what may not is a row of its own."""
        while not self._over():
            row = self._proposed(self._next)
            if row is None:
                break
            self._next += 1
            if row.ended or (row.status == "waiting" and not self._room()):
                continue
            found = planned(self._search, self._checked, row)
            if isinstance(found, Row):
                self._diary.write(found)
                continue
            self._diary.write(found.row)
            self._live[trial_id] = row.number
            return {ASKED: self._asked(found)}
        return str(Searcher.FINISHED)

    def everything(self) -> list[Asked]:
        """All that may still run at once, for a scheduler that wants its population whole."""
        found = []
        while isinstance(told := self.suggest(f"all-{self._next}"), dict):
            found.append(told[ASKED])
        return found

    def left(self) -> bool:
        """Whether any trial has not ended, or was never proposed."""
        known = (self._diary.row(number) for number in range(self._count))
        return any(row is None or not row.ended for row in known)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The rows are written by the watch, which is told more."""
        self._live.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the diary is in the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its diary."""

    def _over(self) -> bool:
        proposed = self._diary.row(self._next) is not None
        return self.over or self._next >= self._count or not (proposed or self._room())

    def _room(self) -> bool:
        """Whether the budget has another trial; one that ran when the search died has its place."""
        most = self._search.section.budget.trials
        begun = {r.number for r in self._diary.rows if r.status not in ("waiting", "rejected")}
        return most is None or len(begun | {*self._live.values()}) < most

    def _proposed(self, number: int) -> Row | None:
        """The trial of that number; None where all of a small space was proposed."""
        known = self._diary.row(number)
        if known is not None:
            return known
        if self._ahead is not None:
            config: Config | None = self._ahead[number]
        else:
            config = learnt(self._search.section, number, self._diary.rows)
        if config is None:
            return None
        return self._diary.write(Row(number, config, run=f"{self._run}-t{number:03d}"))

    def _asked(self, found: Planned) -> Asked:
        checked, row = found.checked, found.row
        folder = checked.model.folder
        path = checked.spec.model.path
        digest = self._digests.setdefault(path, "") or model_digest(folder)
        self._digests[path] = digest
        request = request_of(checked, row.run, digest, search=self._run)
        request = dataclasses.replace(request, federation=found.federation)
        return Asked(
            row.number, dict(row.config), request, self._run, self._search.section.measured
        )


def request_of(checked: Checked, run: str, digest: str, *, search: str) -> Request:
    """A trial's request: with checkpoints where the search looks at it."""
    train = checked.spec.train
    every = train.eval_every or train.checkpoint_every or 20
    spec = checked.spec.model_copy(
        update={"train": train.model_copy(update={"checkpoint_every": every})}
    )
    return dataclasses.replace(checked, spec=spec).request(run, digest=digest, search=search)
