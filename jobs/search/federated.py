"""A trial that is a federation: one worker plays its server and all of its clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from jobs.federate.rows import partition_of
from jobs.federate.server import Federation
from jobs.federate.sites import LocalSites
from jobs.search.order import Order, Report
from jobs.search.sharing import FIRST, Shelf
from jobs.search.trial import StoppedEarly
from jobs.store.manifest import Manifest
from jobs.store.runs import LEDGER, RunStore


class FederatedTrial(Federation):
    """It reports its evaluations, may be stopped, and ends with a checkpoint and no commit."""

    def __init__(
        self, order: Order, *told: Any, search: RunStore, tell: Callable[[Report], bool]
    ) -> None:
        super().__init__(order.request, *told)
        self._order, self._shelf, self._tell_search = order, Shelf(search), tell
        self._fresh = dict[str, float]()

    def _measure(self, at: str) -> dict[str, float] | None:
        key = self._order.keys.first
        if at == "before" and FIRST in self._order.have:
            measured: dict[str, float] = json.loads(self._shelf.get(FIRST, key))
            self.evaluations[at] = measured
            self.record.evaluation(at, self.round, measured, 0.0)
            return None
        found = super()._measure(at)
        if found is not None and at == "before":
            self._shelf.put(FIRST, key, json.dumps(found).encode())
        self._fresh = found or {}
        return found

    def _after_round(self, *told: Any) -> None:
        self._fresh = {}
        super()._after_round(*told)
        if self._fresh:
            self.saver.wait()
            if not self._tell_search(Report(self.round, self._fresh, self.ledger["tokens"])):
                raise StoppedEarly

    def _commit(self) -> Manifest | None:
        self.ledger.close(self.plan, self.round * self.section.local_steps)
        self.record.paper(LEDGER, self.ledger)
        return None


def federated(
    order: Order,
    runs: RunStore,
    device: torch.device,
    *,
    search: RunStore,
    tell: Callable[[Report], bool],
) -> Report:
    """The trial from where its run is, to its end."""
    sites = LocalSites(order.request, runs.store, device)
    split = partition_of(order.request)
    trial = FederatedTrial(order, runs, sites, split, search=search, tell=tell)
    try:
        trial.run()
    finally:
        trial.saver.close()
    return Report(trial.round, trial.evaluations["end"], trial.ledger["tokens"], ended=True)
