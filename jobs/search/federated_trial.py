"""Run a federation as a trial: one worker is its server and all of its clients."""

from __future__ import annotations

import torch

from jobs.federation.partition_file import read_partition
from jobs.federation.server import make_federation
from jobs.federation.sites.local_sites import LocalSites
from jobs.search.trial import SendReport, TrialHooks, make_final_report
from jobs.search.tune.trial_task import TrialReport, TrialTask
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.request import FederationRequest


def run_federated_trial(
    task: TrialTask, device: torch.device, *, send_report: SendReport
) -> TrialReport:
    """Run a trial from its newest checkpoint to its end."""
    request = task.request
    assert isinstance(request, FederationRequest)
    runs = RunStore(open_store(request.spec.store), request.run_id)
    sites = LocalSites(request, runs.store, device)
    hooks = TrialHooks(task, runs, rank=0, send_report=send_report)
    partition = read_partition(runs, request.partition)
    loop = make_federation(request, runs, sites, partition, hooks=hooks)
    loop.run()
    return make_final_report(loop)
