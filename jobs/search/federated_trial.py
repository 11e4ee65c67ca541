"""A trial that is a federation: one worker plays its server and all of its clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from jobs.federation.partition_file import read_partition
from jobs.federation.server import FederationServer
from jobs.federation.sites.local_sites import LocalSites
from jobs.search.shared_cache import FIRST_EVALUATION, SharedCache
from jobs.search.trial import StoppedEarly
from jobs.search.tune.trial_task import TrialReport, TrialTask
from jobs.store.adapters.manifest import Manifest
from jobs.store.runs.run_store import LEDGER, RunStore
from jobs.train.request import FederationRequest


class FederatedTrial(FederationServer):
    """It reports its evaluations, may be stopped, and ends with a checkpoint and no commit."""

    def __init__(
        self,
        task: TrialTask,
        *args: Any,
        search: RunStore,
        send_report: Callable[[TrialReport], bool],
    ) -> None:
        super().__init__(task.request, *args)
        self._task, self._shared_cache, self._send_report = task, SharedCache(search), send_report
        self._new_metrics = dict[str, float]()

    def _measure(self, at: str) -> dict[str, float] | None:
        key = self._task.keys.first_evaluation
        if at == "before" and FIRST_EVALUATION in self._task.available:
            metrics: dict[str, float] = json.loads(self._shared_cache.get(FIRST_EVALUATION, key))
            self.evaluations[at] = metrics
            self.recorder.record_evaluation(at, self.round, metrics, 0.0)
            return None
        measured = super()._measure(at)
        if measured is not None and at == "before":
            self._shared_cache.put(FIRST_EVALUATION, key, json.dumps(measured).encode())
        self._new_metrics = measured or {}
        return measured

    def _after_round(self, *args: Any) -> None:
        self._new_metrics = {}
        super()._after_round(*args)
        if self._new_metrics:
            self.saver.wait()
            if not self._send_report(
                TrialReport(self.round, self._new_metrics, self.ledger["tokens"])
            ):
                raise StoppedEarly

    def _commit(self) -> Manifest | None:
        self.ledger.close(self.plan, self.round * self.section.local_steps)
        self.recorder.write_json(LEDGER, self.ledger)
        return None


def run_federated_trial(
    task: TrialTask,
    runs: RunStore,
    device: torch.device,
    *,
    search: RunStore,
    send_report: Callable[[TrialReport], bool],
) -> TrialReport:
    """The trial from where its run is, to its end."""
    assert isinstance(task.request, FederationRequest)
    sites = LocalSites(task.request, runs.store, device)
    partition = read_partition(runs, task.request.partition)
    trial = FederatedTrial(task, runs, sites, partition, search=search, send_report=send_report)
    try:
        trial.run()
    finally:
        trial.saver.close()
    return TrialReport(trial.round, trial.evaluations["end"], trial.ledger["tokens"], ended=True)
