"""The rounds of a federation: who is sent what, what comes of the answers, and what is kept.

    open a stage -> (a round: weights down, updates up, their mean) x rounds -> hand-off -> commit

It has no base and no rows: masks, weights, sums. What a round is, only its number and the seed
tell, so that one which was cut short is repeated to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from jobs.errors import Fault, InputError, TrainingFailed
from jobs.federation.averaging.flat_layout import VectorLayout, to_bytes, to_vector
from jobs.federation.averaging.server_step import ServerOptimizer, WeightedUpdate
from jobs.federation.partition import Partition
from jobs.federation.round_log import open_round_log
from jobs.federation.sampling import drops_out, sample_clients
from jobs.federation.sites.local_sites import Sites
from jobs.federation.sites.messages import ClientFailure, ClientTask, ClientUpdate, StagePayload
from jobs.federation.stage_setup import StageSetup, StageState
from jobs.federation.traffic_log import TrafficLog
from jobs.federation.validate_updates import validate_update
from jobs.plan.plan import StagePlan
from jobs.store.adapters.manifest import Manifest, detect_form
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import CheckpointSaver, TrainingState, load_newest_state
from jobs.train.comm.collectives import CHECKPOINT, EVALUATION, INSTALL, WorkerContext
from jobs.train.engine.learning_rate import compute_rate
from jobs.train.evaluation import compute_metrics
from jobs.train.monitor.ledger import Ledger
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.request import Request

MOMENTUM, RESIDUAL = "outer", "residual"
"""Beside the weights in a checkpoint: the server's momentum; each client's error feedback."""


class FederationServer:
    """One run of many clients."""

    def __init__(
        self,
        request: Request,
        runs: RunStore,
        sites: Sites,
        partition: Partition,
        *,
        attempt: int = 0,
    ) -> None:
        assert request.federation is not None
        self.request, self.runs, self.sites, self.partition = request, runs, sites, partition
        self.spec, self.section, self.plan = request.spec, request.federation, request.plan
        self.attempt = attempt
        self.recorder = RunRecorder(runs, writes=True)
        self.saver = CheckpointSaver(runs)
        context = WorkerContext(0, 1, torch.device("cpu"))
        # Every byte leaves a site: each counts as one that left its machine.
        context.collectives.node_count = 2
        self.context, self.ledger = context, Ledger(context)
        self.traffic, self.round_log = (
            TrafficLog(context.collectives, partition.names),
            open_round_log(runs),
        )
        self.round = 0
        self.evaluations: dict[str, dict[str, float]] = {}
        self._equipped_clients: set[int] = set()
        self._residuals: dict[int, bytes] = {}
        self._dropped_clients = 0
        self._stage_setup = StageSetup(
            request, runs, sites, partition, context, self.recorder, self.traffic
        )

    def run(self) -> Manifest | None:
        """All rounds and the commit. Raises TrainingFailed."""
        state = load_newest_state(self.runs)
        if state is not None:
            self._resume(state)
        self.recorder.emit_event("started", steps=self.section.rounds, plan=self.plan.to_json(),
                          clients=self.partition.count,
                          local_steps=self.section.local_steps)  # fmt: skip
        weights: Mapping[str, Tensor] = state.weights if state else {}
        for index in range(state.stage if state else 0, len(self.plan.stages)):
            resume_state = state if state and state.stage == index else None
            weights = self._run_stage(index, weights, resume_state)
        self.saver.close()
        manifest = self._commit()
        self.recorder.close()
        self.round_log.flush()
        return manifest

    def _resume(self, state: TrainingState) -> None:
        self.round = state.step
        self.evaluations = {
            at: dict(metrics) for at, metrics in state.record["evaluations"].items()
        }
        self.ledger.restore(state.record["ledger"])
        self._equipped_clients = set(state.record["equipped"])
        self._dropped_clients = state.record["left_out"]
        residuals = state.moments.get(RESIDUAL, {})
        self._residuals = {
            int(client): to_bytes(residual_n) for client, residual_n in residuals.items()
        }
        stage = self.plan.stages[state.stage].name
        self.recorder.emit_event("resumed", step=state.step, unit="round", stage=stage)

    def _run_stage(
        self, index: int, weights: Mapping[str, Tensor], resume_state: TrainingState | None
    ) -> Mapping[str, Tensor]:
        """One stage, from what the one before has trained, or from a checkpoint inside it."""
        stage, start_time = self.plan.stages[index], time.monotonic()
        self.context.collectives.stage = stage.name
        if not resume_state:
            self._equipped_clients.clear()
            self._residuals.clear()
        stage_state = self._stage_setup.begin(index, weights, resume_state)
        layout = stage_state.info.layout
        self.weights_n = stage_state.weights_n
        if stage_state.energy_share is not None:
            self.ledger["handoff_kept"] = stage_state.energy_share
        optimizer = ServerOptimizer(self.section.average, layout)
        if resume_state and optimizer.momentum_n is not None and MOMENTUM in resume_state.moments:
            optimizer.momentum_n.copy_(layout.flatten(resume_state.moments[MOMENTUM]))
        rounds = count_rounds(self.request, index)
        done = resume_state.stage_step if resume_state else 0
        self._evaluate_stage_start(index)
        self.recorder.emit_event("stage", stage=stage.name, steps=rounds, unit="round", done=done)
        for stage_round in range(done, rounds):
            self._run_round(index, stage, stage_round, rounds, stage_state, optimizer)
            self._after_round(index, stage_round + 1, rounds, layout, optimizer)
        is_last = index == len(self.plan.stages) - 1
        if rounds or is_last:
            self._measure("end" if is_last else stage.name)
        if rounds != done:
            self._save(index, rounds, layout, optimizer)
        self.ledger[f"{stage.name}_seconds"] = time.monotonic() - start_time
        return layout.split_by_name(self.weights_n)

    def _run_round(
        self,
        index: int,
        stage: StagePlan,
        stage_round: int,
        rounds: int,
        stage_state: StageState,
        optimizer: ServerOptimizer,
    ) -> None:
        start_time, payload = time.monotonic(), stage_state.payload
        rate = compute_rate(
            stage_round,
            steps=rounds,
            peak=stage.learning_rate,
            warmup=self.spec.train.warmup,
            schedule=self.spec.train.schedule,
        )
        tasks = self._make_tasks(index, rate, payload)
        updates, failures = list[WeightedUpdate](), list[ClientFailure]()
        losses, tokens = dict[int, float](), 0
        pending = {task.client for task in tasks}
        for reply, payload_bytes in self.sites.play(tasks):
            if payload_bytes:
                self.traffic.record_payload(payload)
            down_bytes = len(tasks[0].weights)
            result = validate_update(
                reply, stage_state.info, self.request, self.partition, self.round, pending
            )
            pending.discard(result.client)
            if isinstance(result, ClientFailure):
                failures.append(result)
                self._dropped_clients += 1
                self.traffic.record_failure(
                    result, down_bytes=down_bytes, payload_bytes=payload_bytes
                )
                self.recorder.emit_event("left out", round=self.round + 1, client=result.client,
                                  name=self.partition.names[result.client], why=result.reason)  # fmt: skip
                continue
            assert isinstance(reply, ClientUpdate)
            updates.append(result)
            losses[reply.client], tokens = reply.loss, tokens + reply.tokens
            self.traffic.record_update(reply, down_bytes=down_bytes, payload_bytes=payload_bytes)
        divergences = [failure.reason for failure in failures if failure.diverged]
        if divergences and not updates:
            # Whoever else was left out had not trained: another round would come to the same.
            raise TrainingFailed(f"round {self.round + 1}, {stage.name} stage", divergences[0], "")
        self.weights_n = optimizer.step(self.weights_n, updates)
        self._record_round(
            stage, rate, losses, updates, tasks, tokens, time.monotonic() - start_time
        )

    def _make_tasks(self, index: int, rate: float, payload: StagePayload) -> list[ClientTask]:
        """The round's clients, each with what it lacks."""
        seed, section = self.spec.train.seed, self.section
        weights = to_bytes(self.weights_n)
        tasks = []
        for client in sample_clients(
            seed, self.round, clients=self.partition.count, count=section.clients_per_round
        ):
            tasks.append(
                ClientTask(
                    stage=index,
                    round=self.round,
                    client=client,
                    learning_rate=rate,
                    weights=weights,
                    payload=payload
                    if payload.size and client not in self._equipped_clients
                    else None,
                    residual=self._residuals.pop(client, b""),
                    drops_out=drops_out(seed, self.round, client, probability=section.drop_out),
                )
            )
            self._equipped_clients.add(client)
            if tasks[-1].residual:
                self.context.collectives.count_traffic(CHECKPOINT, len(tasks[-1].residual))
        return tasks

    def _record_round(
        self,
        stage: StagePlan,
        rate: float,
        losses: Mapping[int, float],
        updates: list[WeightedUpdate],
        tasks: list[ClientTask],
        tokens: int,
        seconds: float,
    ) -> None:
        self.round += 1
        self.ledger["tokens"] += tokens
        self.ledger["seconds"] += seconds
        total_weight = sum(update.weight for update in updates)
        loss = sum(
            losses[update.client] * update.weight
            for update in sorted(updates, key=lambda t: t.client)
        )
        lines = self.traffic.close_round()
        metrics = {
            "loss": loss / total_weight if total_weight else math.nan,
            "learning_rate": rate,
            "clients": len(tasks),
            "answered": len(updates),
            "down": sum(line["down"] + line["kit"] for line in lines),
            "up": sum(line["up"] for line in lines),
            "tokens": self.ledger["tokens"],
            "tokens_per_second": tokens / seconds,
            "seconds": self.ledger["seconds"],
        }
        self.recorder.record_step(self.round, stage.name, metrics)
        self.round_log.append({"round": self.round, "stage": stage.name, "clients": lines})

    def _after_round(
        self, index: int, done: int, rounds: int, layout: VectorLayout, optimizer: ServerOptimizer
    ) -> None:
        train, at_end = self.spec.train, done == rounds
        if train.eval_every and self.round % train.eval_every == 0 and not at_end:
            self._measure(f"round {self.round}")
        if train.checkpoint_every and self.round % train.checkpoint_every == 0 and not at_end:
            self._save(index, done, layout, optimizer)

    def _save(
        self, index: int, done: int, layout: VectorLayout, optimizer: ServerOptimizer
    ) -> None:
        if not self.spec.train.checkpoint_every or not done:
            return
        start_time = time.monotonic()
        moments: dict[str, dict[str, Tensor]] = {}
        if optimizer.momentum_n is not None:
            moments[MOMENTUM] = layout.split_by_name(optimizer.momentum_n.clone())
        if self.section.has_client_state:
            residuals = {**self._residuals, **self.sites.collect_residuals()}
            moments[RESIDUAL] = {
                str(client): to_vector(residual, layout) for client, residual in residuals.items()
            }
            for residual in residuals.values():
                self.context.collectives.count_traffic(CHECKPOINT, len(residual))
        progress = {
            "evaluations": {at: dict(metrics) for at, metrics in self.evaluations.items()},
            "ledger": self.ledger.to_dict(),
            "equipped": sorted(self._equipped_clients),
            "left_out": self._dropped_clients,
        }
        weights = layout.split_by_name(self.weights_n.clone())
        state = TrainingState(index, done, self.round, weights, moments, progress)
        self.saver.save(state, lambda size: self._record_checkpoint(state, size))
        self.ledger.add_seconds("checkpoint_seconds", time.monotonic() - start_time)

    def _record_checkpoint(self, state: TrainingState, size: int) -> None:
        self.recorder.write_json("ledger.json", state.record["ledger"])
        self.recorder.emit_event("checkpoint", step=state.step, unit="round", bytes=size)

    def _evaluate_stage_start(self, index: int) -> None:
        if index == 0 and "before" not in self.evaluations:
            self._measure("before")
        if index > 0 and "handoff" not in self.evaluations:
            self._measure("handoff")

    def _measure(self, at: str) -> dict[str, float] | None:
        """The weights on the held-out rows; None where there are none."""
        if self.request.eval_data is None and self.spec.data.eval_fraction is None:
            return None
        start_time, weights = time.monotonic(), to_bytes(self.weights_n)
        sums = self.sites.evaluate(weights)
        for _ in range(self.sites.count):
            self.context.collectives.count_traffic(EVALUATION, len(weights))
        loss, targets, correct = (
            math.fsum(getattr(entry, name) for entry in sums)
            for name in ("loss", "targets", "correct")
        )
        if not targets:
            length = self.spec.data.max_length
            problem = f"no row of eval has a target within {length} tokens"
            raise InputError([Fault("data.max_length", problem, "Raise it, or shorten prompts.")])
        metrics = compute_metrics(loss, targets, correct, task=self.spec.model.task)
        seconds = time.monotonic() - start_time
        self.ledger.add_seconds("eval_seconds", seconds)
        if not at.startswith("round "):
            self.evaluations[at] = metrics
        self.recorder.record_evaluation(at, self.round, metrics, seconds)
        return metrics

    def _commit(self) -> Manifest | None:
        self.ledger.close(self.plan, self.round * self.section.local_steps)
        peaks, weights = self.sites.collect_peaks(), to_bytes(self.weights_n)
        self.context.collectives.count_traffic(INSTALL, len(weights))
        self.ledger |= {
            "workers": self.sites.count,
            "nodes": len({peak["host"] for peak in peaks.values()}),
            "memory": peaks,
            "rounds": self.round,
            "left_out": self._dropped_clients,
            "clients": self.partition.count,
            "partition": self.partition.digest,
            "wire": self.context.collectives.get_traffic(),
        }
        manifest = self.sites.commit(
            weights,
            attempt=self.attempt,
            evaluations=self.evaluations,
            ledger=dict(self.ledger),
        )
        self.recorder.write_json("ledger.json", self.ledger)
        self.recorder.emit_event(
            "published",
            adapter=manifest.label,
            form=detect_form(manifest),
            bytes=manifest.size,
            place=self.runs.store.url(manifest.prefix),
            ledger=self.ledger,
        )
        return manifest


def count_rounds(request: Request, index: int) -> int:
    """Rounds of a stage: its optimiser steps are those of a client, in all rounds."""
    assert request.federation is not None
    return (request.plan.stages[index].steps or 0) // request.federation.local_steps
