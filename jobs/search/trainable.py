"""A trial as Ray Tune sees it: one evaluation a step, its state in our own checkpoints.

A class and not a function, because Tune keeps its actor for the next trial, and with it the crew:
workers that have imported torch start a trial in a second. What Tune saves is a copy of the run's
newest checkpoint, free of world size, which another trial may go on from (PBT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError

from jobs.errors import JobsError
from jobs.request import Request
from jobs.search.crew import Crew, Lost
from jobs.search.order import Order, Report, comparable
from jobs.search.sharing import FIRST, SCORES, STAGE, Shelf, keys_of, tokens_taken
from jobs.spec import ClusterSection
from jobs.store.objects import open_store
from jobs.store.runs import MASKS, STARTS, STATE, TENSORS, RunStore

ASKED = "asked"
"""The one key of Tune's config: a trial's Asked, pickled by Ray."""
PAPERS = (MASKS, STARTS)
"""What a state needs beside its checkpoint."""


@dataclass(frozen=True)
class Asked:
    """One trial, as the driver hands it over."""

    number: int
    config: Mapping[str, Any]
    """The searched keys and their values."""
    request: Request
    search: str
    metric: str
    donor: int | None = None
    """The trial whose state this one took over (PBT)."""


class TrialActor(tune.Trainable):  # type: ignore[misc]  # Ray has no types that mypy may lean on
    """Runs trials one after another, each with the crew of the one before."""

    _asked: Asked
    _cluster: ClusterSection
    _runs: RunStore
    _search: RunStore
    _begun: bool
    _losses: int
    """Workers that died in this trial."""
    _taken: tuple[str, ...]
    """What the trial took over instead of doing it."""
    _spared: int
    """Tokens that came with a sparse stage which another trial had trained."""

    def setup(self, config: dict[str, Any]) -> None:
        """Called by Tune for the first trial of this actor."""
        self._crew: Crew | None = None
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called by Tune for another trial: what still runs of the last one is stopped."""
        if self._crew is not None:
            self._crew.stop()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next evaluation, or the end. A worker that dies is replaced a few times."""
        cluster = self._asked.request.spec.cluster
        while True:
            try:
                return self._result(self._report())
            except Lost as lost:
                self._losses += 1
                self._begun = False
                if self._losses > cluster.max_failures:
                    return self._result(Report(0, {}, 0, ended=True, failed=str(lost)))
            except (JobsError, RayError) as failed:
                # Tune would start the trial again, and tell nobody why; it is one row's end.
                self.cleanup()
                said = " ".join(str(failed).split())[:500]
                return self._result(Report(0, {}, 0, ended=True, failed=said))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A copy of the newest checkpoint; the crew waits for the search's verdict meanwhile."""
        folder, step = Path(checkpoint_dir), max(self._runs.checkpoint_steps(), default=None)
        if step is None:
            return
        for name in (TENSORS, STATE):
            (folder / name).write_bytes(self._runs.store.get(self._runs.checkpoint_key(step, name)))
        (folder / "step").write_text(str(step))
        for name in PAPERS:
            if self._runs.store.head(self._runs.key(name)) is not None:
                (folder / name).write_bytes(self._runs.store.get(self._runs.key(name)))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """What another trial saved, or this one: the run's newest checkpoint from now on."""
        folder = Path(checkpoint_dir)
        if self._crew is not None:
            self._crew.stop()
        self._begun = False
        if not (folder / "step").exists():
            return
        step = int((folder / "step").read_text())
        for old in self._runs.checkpoint_steps():
            if old > step:
                for name in (STATE, TENSORS):
                    self._runs.store.delete(self._runs.checkpoint_key(old, name))
        for name in PAPERS:
            if (folder / name).exists():
                self._runs.store.put(self._runs.key(name), (folder / name).read_bytes())
        for name in (TENSORS, STATE):
            key = self._runs.checkpoint_key(step, name)
            self._runs.store.put(key, (folder / name).read_bytes())

    def cleanup(self) -> None:
        """Called by Tune when it ends this actor."""
        if self._crew is not None:
            self._crew.close()

    def _take(self, config: Mapping[str, Any]) -> None:
        asked: Asked = config[ASKED]
        if self._crew is not None and asked.request.spec.cluster != self._cluster:
            self._crew.close()
            self._crew = None
        self._asked, self._begun, self._losses = asked, False, 0
        self._cluster = asked.request.spec.cluster
        store = open_store(asked.request.spec.store)
        self._runs = RunStore(store, asked.request.run_id)
        self._search = RunStore(store, asked.search)
        self._taken, self._spared = (), 0

    def _report(self) -> Report:
        if self._crew is None:
            self._crew = Crew(self._cluster)
        if self._begun:
            self._crew.go_on()
        else:
            self._crew.begin(self._order())
            self._begun = True
        told = self._crew.report()
        report = comparable(told, self._asked.metric)
        if told.ended:
            self._crew.finished(told)
        elif report.ended:
            self._crew.stop()
        return report

    def _order(self) -> Order:
        request, shelf = self._asked.request, Shelf(self._search)
        keys = keys_of(request)
        have = set[str]()
        # A trial that goes on finds these in its own checkpoint.
        if not self._runs.checkpoint_steps():
            have |= {FIRST} if shelf.has(FIRST, keys.first) else set()
            have |= {SCORES} if shelf.has(SCORES, keys.scores) else set()
            if keys.stage is not None and shelf.has(STAGE, keys.stage):
                shelf.take_stage(keys.stage, self._runs)
                have = {STAGE, FIRST}
        self._spared = tokens_taken(self._runs)
        donor = self._asked.donor
        state = [] if donor is None else [f"state of trial {donor}"]
        self._taken = tuple(dict.fromkeys((*self._taken, *sorted(have), *state)))
        return Order(request, self._asked.search, self._asked.metric, keys, frozenset(have))

    def _result(self, report: Report) -> dict[str, Any]:
        found = report.plain()
        # Under a name of its own: a trial that failed has measured nothing, and Tune wants none.
        metric = report.metrics.get(self._asked.metric)
        told = {} if metric is None else {"metric": metric}
        tokens = max(0, report.tokens - self._spared)
        more = {"tokens": tokens, "taken": self._taken, "done": report.ended}
        return {**found, **told, **more}
