"""The server of a federation: opens its stages at the sites, and commits what the rounds trained.

    open a stage -> (a round: weights to clients, updates back, their mean) x rounds -> commit

`StageLoop` decides when. The server has neither base nor rows, only masks, weights and sums. A
round depends on nothing but its number and the seed, so an interrupted one is repeated to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jobs.errors import Fault, InputError, TrainingFailed
from jobs.federation.averaging.flat_layout import make_layout, to_bytes
from jobs.federation.averaging.server_step import ServerOptimizer, WeightedUpdate
from jobs.federation.client_state import RESIDUAL, ClientState
from jobs.federation.partition import Partition
from jobs.federation.round_log import open_round_log
from jobs.federation.sampling import drops_out, sample_clients
from jobs.federation.sites.messages import ClientFailure, ClientTask, ClientUpdate, CommitRecord
from jobs.federation.sites.sites_interface import Sites
from jobs.federation.stage_setup import StageSetup, StageState
from jobs.federation.traffic_log import TrafficLog
from jobs.federation.validate_updates import validate_update
from jobs.plan.plan import Plan, StagePlan
from jobs.store.adapters.manifest import Manifest
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import TrainingState
from jobs.train.comm.collectives import CHECKPOINT, EVALUATION, INSTALL, Collectives, WorkerContext
from jobs.train.engine.learning_rate import StepRates, compute_rates, describe_rates
from jobs.train.evaluation_sums import compute_metrics
from jobs.train.hooks import RunHooks
from jobs.train.loop import NeedsSync, StageLoop, StepOutcome
from jobs.train.monitor.ledger import Ledger
from jobs.train.monitor.phases import PhaseStart
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
    start: PhaseStart | None = None,
) -> StageLoop:
    """Return the loop of a federation, ready to run; `start`: its phases so far."""
    server = FederationServer(request, runs, sites, partition, attempt=attempt, start=start)
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
        start: PhaseStart | None = None,
    ) -> None:
        self.request, self.spec, self.runs = request, request.spec, runs
        self.sites, self.partition, self._attempt = sites, partition, attempt
        # Two nodes: every byte leaves a site, so each counts as one that left its machine.
        collectives = Collectives(node_count=2)
        self.context = WorkerContext(0, 1, torch.device("cpu"), collectives=collectives)
        self.recorder = RunRecorder(runs, writes=True, start=start)
        self.ledger = Ledger(self.context)
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
        self.recorder.end_phase("base")
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
        if state.shares is not None:
            self.ledger |= state.shares.describe()
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


MOMENTUM = "outer"
"""Name of the server's momentum among the moments of a checkpoint."""


@dataclass
class _RoundResult:
    """What the clients of one round have sent."""

    updates: list[WeightedUpdate] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    tokens: int = 0
    divergences: list[str] = field(default_factory=list)

    def compute_loss(self) -> float:
        """Return the mean loss, weighted as the updates; NaN without any."""
        total_weight = sum(update.weight for update in self.updates)
        updates = sorted(self.updates, key=lambda update: update.client)
        loss = sum(self.losses[update.client] * update.weight for update in updates)
        return loss / total_weight if total_weight else math.nan


class FederationStage:
    """The rounds of one stage; a `TrainingStage`."""

    def __init__(
        self, server: FederationServer, index: int, state: StageState, resumed: TrainingState | None
    ) -> None:
        self._server, self._index, self._state = server, index, state
        self._stage = server.request.plan.stages[index]
        self._section, self._layout = server.request.federation, state.info.layout
        self._weights_n = state.weights_n
        self._optimizer = ServerOptimizer(self._section.average, self._layout)
        if resumed is not None and MOMENTUM in resumed.moments:
            self._optimizer.restore_momentum(self._layout.flatten(resumed.moments[MOMENTUM]))

    def train_step(self, number: int, step: int, needs_sync: NeedsSync) -> StepOutcome:
        """Run one round: send the weights to its clients and average their updates."""
        start_time, train = time.monotonic(), self._server.spec.train
        rounds = self._server.get_length(self._stage)
        rates = compute_rates(number, steps=rounds, stage=self._stage, train=train)
        tasks = self._make_tasks(step - 1, rates)
        result = self._run_tasks(tasks, step - 1)
        if result.divergences and not result.updates:
            # Clients that were dropped for another reason had not trained: the next round would
            # diverge as well.
            subject = f"round {step}, {self._stage.name} stage"
            return StepOutcome(failure=TrainingFailed(subject, result.divergences[0], ""))
        self._weights_n = self._optimizer.step(self._weights_n, result.updates)
        seconds = time.monotonic() - start_time
        return StepOutcome(((step, self._record_round(step, rates, result, tasks, seconds)),))

    def keep_start(self) -> None:
        """Return None: the base is evaluated before the first round."""

    def evaluate(self) -> dict[str, float] | None:
        """Return the metrics of the held-out rows, or None if there are none. Raise InputError."""
        server, data = self._server, self._server.spec.data
        if server.request.eval_data is None and data.eval_fraction is None:
            return None
        weights = to_bytes(self._weights_n)
        sums = server.sites.evaluate(weights)
        for _ in range(server.sites.count):
            server.context.collectives.count_traffic(EVALUATION, len(weights))
        totals = [
            math.fsum(column) for column in zip(*(entry.values for entry in sums), strict=True)
        ]
        if not (totals and totals[1]):
            problem = f"no eval row has a target within {data.max_length} tokens"
            raise InputError(
                [Fault("data.max_length", problem, "Increase it, or shorten the prompts.")]
            )
        return compute_metrics(totals, server.spec.target_kind)

    def generate_samples(self, name: str) -> None:
        """Do nothing: the server has no model."""

    def gather_weights(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""
        return self._layout.split_by_name(self._weights_n.clone())

    def gather_moments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the server's momentum, and the clients' residuals from the sites."""
        moments: dict[str, Mapping[str, Tensor]] = {}
        if self._optimizer.momentum_n is not None:
            moments[MOMENTUM] = self._layout.split_by_name(self._optimizer.momentum_n.clone())
        if self._section.has_client_state:
            collected = self._server.sites.collect_residuals()
            moments[RESIDUAL] = self._server.clients.decode_residuals(collected, self._layout)
            for residual_n in moments[RESIDUAL].values():
                size = residual_n.numel() * residual_n.element_size()
                self._server.context.collectives.count_traffic(CHECKPOINT, size)
        return moments

    def close(self, weights: Mapping[str, Tensor]) -> None:
        """Do nothing: the sites remove a stage when they open the next."""

    def _make_tasks(self, round_index: int, rates: StepRates) -> list[ClientTask]:
        """Return the tasks of the round's clients, each with what its client does not have yet."""
        server, section, clients = self._server, self._section, self._server.clients
        seed, payload = server.spec.train.seed, self._state.payload
        weights, tasks = to_bytes(self._weights_n), list[ClientTask]()
        for client in sample_clients(
            seed, round_index, clients=server.partition.count, count=section.clients_per_round
        ):
            task = ClientTask(
                stage=self._index,
                round=round_index,
                client=client,
                rates=rates,
                weights=weights,
                payload=payload if payload.size and client not in clients.equipped else None,
                residual=clients.residuals.pop(client, b""),
                drops_out=drops_out(seed, round_index, client, probability=section.drop_out),
            )
            clients.equipped.add(client)
            if task.residual:
                server.context.collectives.count_traffic(CHECKPOINT, len(task.residual))
            tasks.append(task)
        return tasks

    def _run_tasks(self, tasks: Sequence[ClientTask], round_index: int) -> _RoundResult:
        """Run the tasks at the sites; record and check what comes back."""
        server, result = self._server, _RoundResult()
        pending, down_bytes = {task.client for task in tasks}, len(tasks[0].weights)
        for reply, payload_bytes in server.sites.run_tasks(tasks):
            if payload_bytes:
                server.traffic.record_payload(self._state.payload)
            update = validate_update(
                reply, self._state.info, self._section, server.partition, round_index, pending
            )
            pending.discard(update.client)
            if isinstance(update, ClientFailure):
                server.traffic.record_failure(
                    update, down_bytes=down_bytes, payload_bytes=payload_bytes
                )
                self._drop_client(update, round_index)
                result.divergences += [update.reason] if update.diverged else []
                continue
            assert isinstance(reply, ClientUpdate)
            server.traffic.record_update(reply, down_bytes=down_bytes, payload_bytes=payload_bytes)
            result.updates.append(update)
            result.losses[reply.client] = reply.loss
            result.tokens += reply.tokens
        return result

    def _drop_client(self, failure: ClientFailure, round_index: int) -> None:
        self._server.clients.dropped += 1
        self._server.recorder.emit_event(
            "client_dropped",
            round=round_index + 1,
            client=failure.client,
            name=self._server.partition.names[failure.client],
            why=failure.reason,
        )

    def _record_round(
        self,
        step: int,
        rates: StepRates,
        result: _RoundResult,
        tasks: Sequence[ClientTask],
        seconds: float,
    ) -> dict[str, Any]:
        """Write the round's line and return its metrics."""
        ledger, lines = self._server.ledger, self._server.traffic.close_round()
        ledger["tokens"] += result.tokens
        ledger["seconds"] += seconds
        line = {"round": step, "stage": self._stage.name, "clients": lines}
        self._server.round_log.append(line)
        return {
            "loss": result.compute_loss(),
            **describe_rates(self._stage, rates),
            "clients": len(tasks),
            "answered": len(result.updates),
            "down": _sum_bytes(lines, "down") + _sum_bytes(lines, "payload"),
            "up": _sum_bytes(lines, "up"),
            "tokens": ledger["tokens"],
            "tokens_per_second": result.tokens / seconds,
            "seconds": ledger["seconds"],
        }


def _sum_bytes(lines: Iterable[Mapping[str, Any]], direction: str) -> int:
    return sum(line[direction] for line in lines)
