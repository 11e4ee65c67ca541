"""The server of a federation: opens its stages at the sites, and commits what the rounds trained.

    open a stage -> (a round: weights to clients, updates back, their mean) x rounds -> commit

`StageLoop` decides when. The server has neither base nor rows, only masks, weights and sums. A
round depends on nothing but its number and the seed, so an interrupted one is repeated to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jobs.federation.averaging.flat_layout import make_layout, to_bytes
from jobs.federation.client_state import ClientState
from jobs.federation.federation_stage import FederationStage
from jobs.federation.partition import Partition
from jobs.federation.round_log import open_round_log
from jobs.federation.sites.messages import CommitRecord
from jobs.federation.sites.sites_interface import Sites
from jobs.federation.stage_setup import StageSetup
from jobs.federation.traffic_log import TrafficLog
from jobs.plan.plan import Plan, StagePlan
from jobs.store.adapters.manifest import Manifest
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import TrainingState
from jobs.train.comm.collectives import INSTALL, Collectives, WorkerContext
from jobs.train.hooks import RunHooks
from jobs.train.loop import StageLoop
from jobs.train.monitor.ledger import Ledger
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.request import FederationRequest


def make_federation(
    request: FederationRequest,
    runs: RunStore,
    sites: Sites,
    partition: Partition,
    *,
    attempt: int = 0,
    hooks: RunHooks | None = None,
) -> StageLoop:
    """Return the loop of a federation, ready to run."""
    server = FederationServer(request, runs, sites, partition, attempt=attempt)
    return StageLoop(server, hooks=hooks)


class FederationServer:
    """Trains on the clients of a federation; a `StageTrainer` that counts rounds."""

    unit = "round"

    def __init__(
        self,
        request: FederationRequest,
        runs: RunStore,
        sites: Sites,
        partition: Partition,
        *,
        attempt: int = 0,
    ) -> None:
        self.request, self.spec, self.runs = request, request.spec, runs
        self.sites, self.partition, self._attempt = sites, partition, attempt
        # Two nodes: every byte leaves a site, so each counts as one that left its machine.
        collectives = Collectives(node_count=2)
        self.context = WorkerContext(0, 1, torch.device("cpu"), collectives=collectives)
        self.recorder, self.ledger = RunRecorder(runs, writes=True), Ledger(self.context)
        self.traffic = TrafficLog(collectives, partition.names)
        self.round_log = open_round_log(runs)
        self.clients = ClientState()
        self._stage_setup = StageSetup(
            request, runs, sites, partition, self.context, self.recorder, self.traffic
        )

    def load(self, state: TrainingState | None) -> Plan:
        """Restore what is known about the clients, and return the plan."""
        if state is not None:
            self.clients = ClientState.restore(state)
        return self.request.plan

    def describe_start(self, plan: Plan) -> dict[str, Any]:
        """Return the rounds, the clients and their steps in a round."""
        section = self.request.federation
        return {
            "steps": section.rounds,
            "clients": self.partition.count,
            "local_steps": section.local_steps,
        }

    def get_length(self, stage: StagePlan) -> int:
        """Return the rounds of a stage; its planned steps are those of one client."""
        return (stage.steps or 0) // self.request.federation.local_steps

    def open_stage(
        self, index: int, weights: Mapping[str, Tensor], resumed: TrainingState | None
    ) -> FederationStage:
        """Open a stage at the sites. Raise TrainingFailed if they can't agree on its masks."""
        if resumed is None:
            self.clients.start_stage()
        state = self._stage_setup.open_stage(index, weights, resumed)
        if state.energy_share is not None:
            self.ledger["handoff_energy_share"] = state.energy_share
        return FederationStage(self, index, state, resumed)

    def make_record(self) -> dict[str, Any]:
        """Return what a checkpoint records about the clients."""
        return self.clients.to_record()

    def close_ledger(self, plan: Plan, step: int, lengths: Mapping[str, int]) -> None:
        """Write the ledger's last figures; steps are those of a client sampled in every round."""
        local_steps = self.request.federation.local_steps
        steps = {name: rounds * local_steps for name, rounds in lengths.items()}
        self.ledger.close(plan, step * local_steps, steps)
        peaks = self.sites.collect_peaks()
        self.ledger |= {
            "workers": self.sites.count,
            "nodes": len({peak["host"] for peak in peaks.values()}),
            "memory": peaks,
            "rounds": step,
            "dropped_clients": self.clients.dropped,
            "clients": self.partition.count,
            "partition": self.partition.digest,
        }
        self.round_log.flush()

    def publish(
        self, weights: Mapping[str, Tensor], evaluations: Mapping[str, Mapping[str, float]]
    ) -> Manifest:
        """Let a site commit the adapter. Raise TrainingFailed."""
        encoded = to_bytes(make_layout(weights).flatten(weights))
        self.context.collectives.count_traffic(INSTALL, len(encoded))
        self.ledger["wire"] = self.context.collectives.get_traffic()
        record = CommitRecord(self._attempt, evaluations, dict(self.ledger))
        return self.sites.commit(encoded, record)
