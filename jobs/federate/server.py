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

from jobs.checkpoint import Saver, State, newest_state
from jobs.errors import Fault, InputError, TrainingFailed
from jobs.federate.answers import checked
from jobs.federate.average import Averaging, Told
from jobs.federate.bill import Bill
from jobs.federate.draw import drawn, lost
from jobs.federate.layout import Layout, to_bytes, to_vector
from jobs.federate.messages import Answer, Kit, Left, Task
from jobs.federate.opening import Begun, Opening
from jobs.federate.partition import Partition
from jobs.federate.rounds import rounds_journal
from jobs.federate.sites import Sites
from jobs.ledger import Ledger
from jobs.measure import figures
from jobs.plan import StagePlan
from jobs.record import Record
from jobs.request import Request
from jobs.schedule import rate_at
from jobs.store.manifest import Manifest, form
from jobs.store.runs import RunStore
from jobs.team import CHECKPOINT, EVALUATION, INSTALL, Team

MOMENTUM, RESIDUAL = "outer", "residual"
"""Beside the weights in a checkpoint: the server's momentum; each client's error feedback."""


class Federation:
    """One run of many clients."""

    def __init__(
        self, request: Request, runs: RunStore, sites: Sites, split: Partition, *, attempt: int = 0
    ) -> None:
        assert request.federation is not None
        self.request, self.runs, self.sites, self.split = request, runs, sites, split
        self.spec, self.section, self.plan = request.spec, request.federation, request.plan
        self.attempt = attempt
        self.record = Record(runs, writes=True)
        self.saver = Saver(runs)
        team = Team(0, 1, torch.device("cpu"))
        # Every byte leaves a site: each counts as one that left its machine.
        team.wire.nodes = 2
        self.team, self.ledger = team, Ledger(team)
        self.bill, self.journal = Bill(team.wire, split.names), rounds_journal(runs)
        self.round = 0
        self.evaluations: dict[str, dict[str, float]] = {}
        self._equipped: set[int] = set()
        self._waiting: dict[int, bytes] = {}
        self._left_out = 0
        self._opening = Opening(request, runs, sites, split, team, self.record, self.bill)

    def run(self) -> Manifest | None:
        """All rounds and the commit. Raises TrainingFailed."""
        state = newest_state(self.runs)
        if state is not None:
            self._resume(state)
        self.record.event("started", steps=self.section.rounds, plan=self.plan.to_json(),
                          clients=self.split.count,
                          local_steps=self.section.local_steps)  # fmt: skip
        weights: Mapping[str, Tensor] = state.weights if state else {}
        for index in range(state.stage if state else 0, len(self.plan.stages)):
            resumed = state if state and state.stage == index else None
            weights = self._stage(index, weights, resumed)
        self.saver.close()
        manifest = self._commit()
        self.record.close()
        self.journal.flush()
        return manifest

    def _resume(self, state: State) -> None:
        self.round = state.step
        self.evaluations = {at: dict(found) for at, found in state.record["evaluations"].items()}
        self.ledger.restore(state.record["ledger"])
        self._equipped = set(state.record["equipped"])
        self._left_out = state.record["left_out"]
        waiting = state.moments.get(RESIDUAL, {})
        self._waiting = {int(client): to_bytes(left_n) for client, left_n in waiting.items()}
        stage = self.plan.stages[state.stage].name
        self.record.event("resumed", step=state.step, unit="round", stage=stage)

    def _stage(
        self, index: int, weights: Mapping[str, Tensor], resumed: State | None
    ) -> Mapping[str, Tensor]:
        """One stage, from what the one before has trained, or from a checkpoint inside it."""
        stage, began = self.plan.stages[index], time.monotonic()
        self.team.wire.stage = stage.name
        if not resumed:
            self._equipped.clear()
            self._waiting.clear()
        begun = self._opening.begin(index, weights, resumed)
        layout = begun.opened.layout
        self.weights_n = begun.weights_n
        if begun.kept is not None:
            self.ledger["handoff_kept"] = begun.kept
        averaging = Averaging(self.section.average, layout)
        if resumed and averaging.momentum_n is not None and MOMENTUM in resumed.moments:
            averaging.momentum_n.copy_(layout.flat(resumed.moments[MOMENTUM]))
        rounds = rounds_of(self.request, index)
        done = resumed.stage_step if resumed else 0
        self._before(index)
        self.record.event("stage", stage=stage.name, steps=rounds, unit="round", done=done)
        for number in range(done, rounds):
            self._round(index, stage, number, rounds, begun, averaging)
            self._after_round(index, number + 1, rounds, layout, averaging)
        last = index == len(self.plan.stages) - 1
        if rounds or last:
            self._measure("end" if last else stage.name)
        if rounds != done:
            self._save(index, rounds, layout, averaging)
        self.ledger[f"{stage.name}_seconds"] = time.monotonic() - began
        return layout.named(self.weights_n)

    def _round(
        self,
        index: int,
        stage: StagePlan,
        number: int,
        rounds: int,
        begun: Begun,
        averaging: Averaging,
    ) -> None:
        began, kit = time.monotonic(), begun.kit
        rate = rate_at(
            number,
            steps=rounds,
            peak=stage.learning_rate,
            warmup=self.spec.train.warmup,
            schedule=self.spec.train.schedule,
        )
        tasks = self._tasks(index, rate, kit)
        told, failed = list[Told](), list[Left]()
        losses, tokens = dict[int, float](), 0
        awaited = {task.client for task in tasks}
        for found, sent in self.sites.play(tasks):
            if sent:
                self.bill.kit(kit)
            down = len(tasks[0].weights)
            read = checked(found, begun.opened, self.request, self.split, self.round, awaited)
            awaited.discard(read.client)
            if isinstance(read, Left):
                failed.append(read)
                self._left_out += 1
                self.bill.left(read, down=down, kit=sent)
                self.record.event("left out", round=self.round + 1, client=read.client,
                                  name=self.split.names[read.client], why=read.why)  # fmt: skip
                continue
            assert isinstance(found, Answer)
            told.append(read)
            losses[found.client], tokens = found.loss, tokens + found.tokens
            self.bill.answered(found, down=down, kit=sent)
        ended = [one.why for one in failed if one.diverged]
        if ended and not told:
            # Whoever else was left out had not trained: another round would come to the same.
            raise TrainingFailed(f"round {self.round + 1}, {stage.name} stage", ended[0], "")
        self.weights_n = averaging.step(self.weights_n, told)
        self._told(stage, rate, losses, told, tasks, tokens, time.monotonic() - began)

    def _tasks(self, index: int, rate: float, kit: Kit) -> list[Task]:
        """The round's clients, each with what it lacks."""
        seed, section = self.spec.train.seed, self.section
        weights = to_bytes(self.weights_n)
        tasks = []
        for client in drawn(
            seed, self.round, clients=self.split.count, wanted=section.clients_per_round
        ):
            tasks.append(
                Task(
                    stage=index,
                    round=self.round,
                    client=client,
                    rate=rate,
                    weights=weights,
                    kit=kit if kit.size and client not in self._equipped else None,
                    residual=self._waiting.pop(client, b""),
                    lost=lost(seed, self.round, client, share=section.drop_out),
                )
            )
            self._equipped.add(client)
            if tasks[-1].residual:
                self.team.wire.count(CHECKPOINT, len(tasks[-1].residual))
        return tasks

    def _told(
        self,
        stage: StagePlan,
        rate: float,
        losses: Mapping[int, float],
        told: list[Told],
        tasks: list[Task],
        tokens: int,
        took: float,
    ) -> None:
        self.round += 1
        self.ledger["tokens"] += tokens
        self.ledger["seconds"] += took
        whole = sum(one.weight for one in told)
        loss = sum(losses[one.client] * one.weight for one in sorted(told, key=lambda t: t.client))
        lines = self.bill.close_round()
        measured = {
            "loss": loss / whole if whole else math.nan,
            "learning_rate": rate,
            "clients": len(tasks),
            "answered": len(told),
            "down": sum(line["down"] + line["kit"] for line in lines),
            "up": sum(line["up"] for line in lines),
            "tokens": self.ledger["tokens"],
            "tokens_per_second": tokens / took,
            "seconds": self.ledger["seconds"],
        }
        self.record.step(self.round, stage.name, measured)
        self.journal.append({"round": self.round, "stage": stage.name, "clients": lines})

    def _after_round(
        self, index: int, done: int, rounds: int, layout: Layout, averaging: Averaging
    ) -> None:
        train, at_end = self.spec.train, done == rounds
        if train.eval_every and self.round % train.eval_every == 0 and not at_end:
            self._measure(f"round {self.round}")
        if train.checkpoint_every and self.round % train.checkpoint_every == 0 and not at_end:
            self._save(index, done, layout, averaging)

    def _save(self, index: int, done: int, layout: Layout, averaging: Averaging) -> None:
        if not self.spec.train.checkpoint_every or not done:
            return
        began = time.monotonic()
        moments: dict[str, dict[str, Tensor]] = {}
        if averaging.momentum_n is not None:
            moments[MOMENTUM] = layout.named(averaging.momentum_n.clone())
        if self.section.sticky:
            waiting = {**self._waiting, **self.sites.residuals()}
            moments[RESIDUAL] = {str(one): to_vector(left, layout) for one, left in waiting.items()}
            for left in waiting.values():
                self.team.wire.count(CHECKPOINT, len(left))
        noted = {
            "evaluations": {at: dict(found) for at, found in self.evaluations.items()},
            "ledger": self.ledger.kept(),
            "equipped": sorted(self._equipped),
            "left_out": self._left_out,
        }
        weights = layout.named(self.weights_n.clone())
        state = State(index, done, self.round, weights, moments, noted)
        self.saver.save(state, lambda size: self._saved(state, size))
        self.ledger.add("checkpoint_seconds", time.monotonic() - began)

    def _saved(self, state: State, size: int) -> None:
        self.record.paper("ledger.json", state.record["ledger"])
        self.record.event("checkpoint", step=state.step, unit="round", bytes=size)

    def _before(self, index: int) -> None:
        if index == 0 and "before" not in self.evaluations:
            self._measure("before")
        if index > 0 and "handoff" not in self.evaluations:
            self._measure("handoff")

    def _measure(self, at: str) -> dict[str, float] | None:
        """The weights on the held-out rows; None where there are none."""
        if self.request.evaluation is None and self.spec.data.eval_fraction is None:
            return None
        began, weights = time.monotonic(), to_bytes(self.weights_n)
        sums = self.sites.evaluate(weights)
        for _ in range(self.sites.count):
            self.team.wire.count(EVALUATION, len(weights))
        loss, targets, right = (
            math.fsum(getattr(one, name) for one in sums) for name in ("loss", "targets", "correct")
        )
        if not targets:
            length = self.spec.data.max_length
            problem = f"no row of eval has a target within {length} tokens"
            raise InputError([Fault("data.max_length", problem, "Raise it, or shorten prompts.")])
        measured = figures(loss, targets, right, task=self.spec.model.task)
        took = time.monotonic() - began
        self.ledger.add("eval_seconds", took)
        if not at.startswith("round "):
            self.evaluations[at] = measured
        self.record.evaluation(at, self.round, measured, took)
        return measured

    def _commit(self) -> Manifest | None:
        self.ledger.close(self.plan, self.round * self.section.local_steps)
        peaks, weights = self.sites.peaks(), to_bytes(self.weights_n)
        self.team.wire.count(INSTALL, len(weights))
        self.ledger |= {
            "workers": self.sites.count,
            "nodes": len({told["host"] for told in peaks.values()}),
            "memory": peaks,
            "rounds": self.round,
            "left_out": self._left_out,
            "clients": self.split.count,
            "partition": self.split.digest,
            "wire": self.team.wire.ledger(),
        }
        manifest = self.sites.commit(
            weights,
            attempt=self.attempt,
            evaluations=self.evaluations,
            ledger=dict(self.ledger),
        )
        self.record.paper("ledger.json", self.ledger)
        self.record.event(
            "published",
            adapter=manifest.label,
            form=form(manifest),
            bytes=manifest.size,
            place=self.runs.store.url(manifest.prefix),
            ledger=self.ledger,
        )
        return manifest


def rounds_of(request: Request, index: int) -> int:
    """Rounds of a stage: its optimiser steps are those of a client, in all rounds."""
    assert request.federation is not None
    return (request.plan.stages[index].steps or 0) // request.federation.local_steps
