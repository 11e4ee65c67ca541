"""A training that is a trial: it shares what it can, reports its evaluations, and may be stopped.

It ends with a checkpoint instead of a commit: only the best of a search becomes an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from jobs.adaptation import Scores
from jobs.data.remembered import Remembered
from jobs.data.tokens import Sample
from jobs.engine import Engine
from jobs.plan import StagePlan
from jobs.search.order import Order, Report
from jobs.search.sharing import FIRST, MOST_SCORES, SCORES, STAGE, Shelf
from jobs.store.manifest import Manifest
from jobs.store.runs import LEDGER, RunStore
from jobs.training import Training
from slora.masks.scorer import Scorer


class StoppedEarly(Exception):
    """The search wants no more of this trial."""


class Trial(Training):
    """One trial on one rank."""

    def __init__(
        self,
        order: Order,
        *told: Any,
        search: RunStore,
        tell: Callable[[Report], bool],
        tokens: dict[Any, dict[Any, Sample]],
        **named: Any,
    ) -> None:
        """`tell` is called on every rank after an evaluation; where it is False, the trial ends.

        `tokens`: what this process has tokenised in the trials before, by how.
        """
        super().__init__(order.request, *told, **named)
        self._order, self._shelf, self._tell_search = order, Shelf(search), tell
        self._known_tokens, self._fresh = tokens, dict[str, float]()

    def _load(self, *, resumed: bool) -> None:
        super()._load(resumed=resumed)
        self.prompts = []
        for feed in (self.train_feed, self.eval_feed):
            if feed is not None:
                how = (str(self.request.base), feed.max_length, self.request.labels)
                known = self._known_tokens.setdefault(how, {})
                feed.encode = Remembered(feed.encode, known)  # type: ignore[assignment]

    def _measure(self, engine: Engine, at: str) -> dict[str, float] | None:
        if at == "before" and FIRST in self._order.have:
            measured = json.loads(self._shelf.get(FIRST, self._order.keys.first))
            self.evaluations[at] = measured
            self.record.evaluation(at, self.step, measured, 0.0)
            return None
        found = super()._measure(engine, at)
        if found is not None and at == "before" and self.rank == 0:
            self._shelf.put(FIRST, self._order.keys.first, json.dumps(found).encode())
        self._fresh = found or {}
        return found

    def _after_step(self, engine: Engine, stage: StagePlan, index: int, done: int) -> None:
        self._fresh = {}
        super()._after_step(engine, stage, index, done)
        if self._fresh:
            self.saver.wait()
            if not self._tell_search(Report(self.step, self._fresh, self.ledger["tokens"])):
                raise StoppedEarly

    def _save(self, engine: Engine, index: int, done: int, weights: Mapping[str, Tensor]) -> None:
        super()._save(engine, index, done, weights)
        key = self._order.keys.stage
        ends = index == 0 and len(self.plan.stages) > 1 and done == self.plan.stages[0].steps
        if ends and key is not None and self.rank == 0 and not self._shelf.has(STAGE, key):
            self.saver.wait()
            self._shelf.put_stage(key, self.runs, self.step, self.ledger["tokens"])

    def _scored(self, scorer: Scorer, compute: Callable[[], Scores]) -> Scores:
        key = self._order.keys.scores
        if key is not None and SCORES in self._order.have:
            kept = load(self._shelf.get(SCORES, key))
            # In the model's order, as they were computed: of equal scores the earlier layer wins.
            yield from ((name, kept[name]) for name in self.method.shapes)
            return
        size = 4 * self.plan.target_weights
        if key is None or size > MOST_SCORES or self.rank:
            yield from compute()
            return
        made = dict[str, Tensor]()
        for name, score in compute():
            made[name] = score.contiguous()
            yield name, score
        self._shelf.put(SCORES, key, save(made))

    def _commit(self, weights: Mapping[str, Tensor]) -> Manifest | None:
        self.record.paper(LEDGER, self.ledger)
        return None


def ending(trial: Trial) -> Report:
    """What a trial came to."""
    return Report(trial.step, trial.evaluations["end"], trial.ledger["tokens"], ended=True)
