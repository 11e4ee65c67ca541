"""Sites on a Ray cluster: actors that import torch once, and one that dies takes one client along.

A client is an actor's turn: many clients on few workers. An actor that dies, or does not answer in
time, is replaced; the client that it was playing is left out of its round, and nothing else is.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from jobs.errors import JobsError, TrainingFailed
from jobs.federate.messages import Kit, Left, Opened, Scored, Sums, Task
from jobs.federate.sites import Played
from jobs.request import Request
from jobs.store.manifest import Manifest
from jobs.store.objects import open_store
from jobs.worker import ENVIRONMENT
from slora.errors import SloraError

START_S = 180
"""Seconds more for the first answer of an actor: it imports torch and loads its base before."""


class SiteActor:
    """What the actor is."""

    def __init__(self, request: Request) -> None:
        cluster = request.spec.cluster
        gpu = cluster.gpus_per_worker > 0
        os.environ.update(ENVIRONMENT, **({} if gpu else {"DS_ACCELERATOR": "cpu"}))
        # Here, because the driver imports this module and needs none of it.
        import torch

        from jobs.at_hand import at_hand
        from jobs.federate.site import Site

        if not gpu:
            torch.set_num_threads(cluster.cpus_per_worker)
        device = torch.device("cuda:0" if gpu else "cpu")
        self._site = Site(at_hand(request), open_store(request.spec.store), device)

    def ask(self, what: str, *told: Any, **named: Any) -> Any:
        """One call of the site. An error of ours is an answer; any other costs the actor."""
        try:
            return getattr(self._site, what)(*told, **named)
        except (JobsError, SloraError) as failed:
            return _Failed(str(failed), getattr(failed, "exit_code", 1))


@dataclass(frozen=True)
class _Failed:
    why: str
    exit_code: int


@dataclass
class _Seat:
    """One actor, and what it has been sent."""

    actor: Any
    kit_of: int = -1
    """The stage whose kit it has."""
    starting: bool = True
    """Nothing was heard of it yet."""


class RaySites:
    """The actors of one federation."""

    def __init__(self, request: Request) -> None:
        self._request, self._section = request, request.federation
        self._patience = request.spec.cluster.timeout
        self._seats = [_Seat(self._actor()) for _ in range(request.spec.workers)]
        self._stage, self._kit, self._deaths = -1, Kit(), 0

    @property
    def count(self) -> int:
        return len(self._seats)

    def open(self, stage: int, kit: Kit) -> Opened:
        if self._stage < 0:
            # Before any has to answer in time: a cluster may take long to have room for all.
            up = [self._ask(seat, "peak") for seat in self._seats]
            ray.wait(up, num_returns=len(up))
            for seat in self._seats:
                seat.starting = False
        self._stage, self._kit = stage, kit
        opened: Opened = self._insist("open", stage, kit)
        return opened

    def shapes(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = self._insist("shapes")
        return found

    def score(self, clients: Sequence[int]) -> list[Scored | Left]:
        def lost(client: int, why: str) -> Left:
            return Left(client, 0, why)

        found = self._dealt(list(clients), lambda seat, one: ("score", (one,)), lost)
        return [answer for answer, _ in found]

    def play(self, tasks: Sequence[Task]) -> Iterator[Played]:
        kits = dict[int, int]()

        def asked(seat: _Seat, task: Task) -> tuple[str, tuple[Any, ...]]:
            kit = self._kit if task.kit is not None or seat.kit_of != self._stage else None
            seat.kit_of = self._stage
            kits[task.client] = kit.size if kit else 0
            return "play", (replace(task, kit=kit),)

        def lost(task: Task, why: str) -> Left:
            return Left(task.client, task.round, why)

        for answer, task in self._dealt(list(tasks), asked, lost, home=lambda task: task.client):
            yield answer, kits[task.client]

    def evaluate(self, weights: bytes) -> list[Sums]:
        parts = len(self._seats)

        def asked(seat: _Seat, part: int) -> tuple[str, tuple[Any, ...]]:
            self._equip(seat)
            return "evaluate", (self._stage, weights, part, parts)

        found = list[Sums]()
        waiting = list(range(parts))
        while waiting:
            # Of a site that died, its part is another's.
            missing = list[int]()
            for answer, part in self._dealt(waiting, asked, lambda part, why: None):
                if answer is None:
                    missing.append(part)
                else:
                    found += answer
            waiting = missing
        return sorted(found, key=lambda one: one.index)

    def residuals(self) -> dict[int, bytes]:
        found = dict[int, bytes]()
        for seat in self._seats:
            try:
                found |= self._answered(self._get(self._ask(seat, "residuals", self._stage)))
            except (RayActorError, GetTimeoutError) as dead:
                # Its clients have forgotten what waited with them.
                self._replace(seat, dead)
        return found

    def peaks(self) -> dict[str, dict[str, Any]]:
        found = dict[str, dict[str, Any]]()
        for number, seat in enumerate(self._seats):
            try:
                found[str(number)] = self._answered(self._get(self._ask(seat, "peak")))
            except (RayActorError, GetTimeoutError):
                # Nothing is asked of it any more, but for the first, which a commit replaces.
                continue
        return found

    def commit(self, weights: bytes, **told: Any) -> Manifest:
        self._equip(self._seats[0])
        manifest: Manifest = self._insist("commit", self._stage, weights, **told)
        return manifest

    def close(self) -> None:
        for seat in self._seats:
            ray.kill(seat.actor)

    def _actor(self) -> Any:
        cluster = self._request.spec.cluster
        make = ray.remote(SiteActor).options(
            num_cpus=cluster.cpus_per_worker,
            num_gpus=cluster.gpus_per_worker,
            scheduling_strategy="SPREAD",
        )
        return make.remote(self._request)

    @staticmethod
    def _ask(seat: _Seat, what: str, *told: Any, **named: Any) -> Any:
        return seat.actor.ask.remote(what, *told, **named)

    def _get(self, ref: Any) -> Any:
        """An answer of an idle site, which has it at once. Raises GetTimeoutError."""
        return ray.get(ref, timeout=self._patience)

    def _limit(self, seat: _Seat) -> int:
        """Seconds that a site has for its next answer."""
        return self._patience + (START_S if seat.starting else 0)

    def _insist(self, what: str, *told: Any, **named: Any) -> Any:
        """Asks the first site, and again the one that stands in for it."""
        seat = self._seats[0]
        while True:
            # An adapter may be large and its store far away: a commit takes what it takes.
            limit = None if what == "commit" else self._limit(seat)
            try:
                found = ray.get(self._ask(seat, what, *told, **named), timeout=limit)
            except (RayActorError, RayTaskError, GetTimeoutError) as dead:
                self._replace(seat, dead)
                self._equip(seat)
                continue
            seat.starting = False
            if what == "open":
                seat.kit_of = self._stage
            return self._answered(found)

    def _equip(self, seat: _Seat) -> None:
        """Opens the stage at a site that does not have it."""
        if self._stage >= 0 and seat.kit_of != self._stage:
            seat.kit_of = self._stage
            self._ask(seat, "open", self._stage, self._kit)

    def _dealt(
        self,
        work: Sequence[Any],
        asked: Callable[[_Seat, Any], tuple[str, tuple[Any, ...]]],
        lost: Callable[[Any, str], Any],
        *,
        home: Callable[[Any], int] | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Each piece of work on a free site; what came of it, and the piece.

        Where clients keep something, each has a site of its own.
        """
        waiting, running = deque(work), dict[Any, tuple[_Seat, Any, float]]()
        while waiting or running:
            self._hand_out(waiting, running, asked, home)
            due = min(until for _, _, until in running.values()) - time.monotonic()
            ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, due))
            for ref in ready or self._late(running):
                seat, piece, _ = running.pop(ref)
                if not ready:
                    self._replace(seat, None)
                    yield lost(piece, f"it did not answer within {self._patience} s"), piece
                    continue
                try:
                    found = self._answered(ray.get(ref))
                except (RayActorError, RayTaskError) as dead:
                    yield lost(piece, self._replace(seat, dead)), piece
                else:
                    self._deaths, seat.starting = 0, False
                    yield found, piece

    def _hand_out(
        self,
        waiting: deque[Any],
        running: dict[Any, tuple[_Seat, Any, float]],
        asked: Callable[[_Seat, Any], tuple[str, tuple[Any, ...]]],
        home: Callable[[Any], int] | None,
    ) -> None:
        sticky = home is not None and self._section is not None and self._section.sticky
        for number, seat in enumerate(self._seats):
            if any(busy is seat for busy, _, _ in running.values()):
                continue
            mine = (
                piece
                for piece in waiting
                if not sticky or home(piece) % self.count == number  # type: ignore[misc]
            )
            piece = next(mine, None)
            if piece is None:
                continue
            waiting.remove(piece)
            what, told = asked(seat, piece)
            until = time.monotonic() + self._limit(seat)
            running[self._ask(seat, what, *told)] = (seat, piece, until)

    @staticmethod
    def _late(running: dict[Any, tuple[_Seat, Any, float]]) -> list[Any]:
        now = time.monotonic()
        return [ref for ref, (_, _, until) in running.items() if until <= now]

    def _replace(self, seat: _Seat, dead: RayError | None) -> str:
        """Another actor in its place; why the old one is gone. Raises TrainingFailed."""
        lines = str(dead).splitlines() if dead is not None else ["it did not answer"]
        said = [line.strip() for line in lines if line.strip()]
        why = said[-1].rstrip(".") if said else type(dead).__name__
        self._deaths += 1
        most = self._request.spec.cluster.max_failures
        if self._deaths > most:
            what = f"{self._deaths} of them died without an answer in between: {why}"
            raise TrainingFailed("the federation's sites", what, "Are they short of memory?")
        ray.kill(seat.actor)
        seat.actor, seat.kit_of, seat.starting = self._actor(), -1, True
        return why

    @staticmethod
    def _answered(found: Any) -> Any:
        if not isinstance(found, _Failed):
            return found
        failed = TrainingFailed("a site", found.why.rstrip("."), "")
        failed.exit_code = found.exit_code
        raise failed
