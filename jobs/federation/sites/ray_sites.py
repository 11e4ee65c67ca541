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
from jobs.federation.sites.local_sites import TaskResult
from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientTask,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import open_store
from jobs.train.request import Request
from jobs.train.worker import ENVIRONMENT
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

        from jobs.federation.sites.site import Site
        from jobs.train.localize import localize_request

        if not gpu:
            torch.set_num_threads(cluster.cpus_per_worker)
        device = torch.device("cuda:0" if gpu else "cpu")
        self._site = Site(localize_request(request), open_store(request.spec.store), device)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One call of the site. An error of ours is an answer; any other costs the actor."""
        try:
            return getattr(self._site, method)(*args, **kwargs)
        except (JobsError, SloraError) as error:
            return _SiteError(str(error), getattr(error, "exit_code", 1))


@dataclass(frozen=True)
class _SiteError:
    reason: str
    exit_code: int


@dataclass
class _SiteHandle:
    """One actor, and what it has been sent."""

    actor: Any
    payload_stage: int = -1
    """The stage whose kit it has."""
    starting: bool = True
    """Nothing was heard of it yet."""


class RaySites:
    """The actors of one federation."""

    def __init__(self, request: Request) -> None:
        self._request, self._section = request, request.federation
        self._timeout = request.spec.cluster.timeout
        self._handles = [_SiteHandle(self._start_actor()) for _ in range(request.spec.workers)]
        self._stage, self._payload, self._deaths = -1, StagePayload(), 0

    @property
    def count(self) -> int:
        return len(self._handles)

    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        if self._stage < 0:
            # Before any has to answer in time: a cluster may take long to have room for all.
            pings = [self._call(handle, "peak") for handle in self._handles]
            ray.wait(pings, num_returns=len(pings))
            for handle in self._handles:
                handle.starting = False
        self._stage, self._payload = stage, payload
        info: StageInfo = self._call_with_replacement("open", stage, payload)
        return info

    def get_shapes(self) -> dict[str, tuple[int, int]]:
        shapes: dict[str, tuple[int, int]] = self._call_with_replacement("shapes")
        return shapes

    def score(self, clients: Sequence[int]) -> list[ClientScores | ClientFailure]:
        def make_failure(client: int, reason: str) -> ClientFailure:
            return ClientFailure(client, 0, reason)

        replies = self._dispatch(
            list(clients), lambda handle, client_index: ("score", (client_index,)), make_failure
        )
        return [reply for reply, _ in replies]

    def play(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        payload_sizes = dict[int, int]()

        def make_call(handle: _SiteHandle, task: ClientTask) -> tuple[str, tuple[Any, ...]]:
            payload = (
                self._payload
                if task.payload is not None or handle.payload_stage != self._stage
                else None
            )
            handle.payload_stage = self._stage
            payload_sizes[task.client] = payload.size if payload else 0
            return "play", (replace(task, payload=payload),)

        def make_failure(task: ClientTask, reason: str) -> ClientFailure:
            return ClientFailure(task.client, task.round, reason)

        for reply, task in self._dispatch(
            list(tasks), make_call, make_failure, get_home=lambda task: task.client
        ):
            yield reply, payload_sizes[task.client]

    def evaluate(self, weights: bytes) -> list[EvaluationSums]:
        parts = len(self._handles)

        def make_call(handle: _SiteHandle, part: int) -> tuple[str, tuple[Any, ...]]:
            self._ensure_stage(handle)
            return "evaluate", (self._stage, weights, part, parts)

        sums = list[EvaluationSums]()
        pending = list(range(parts))
        while pending:
            # Of a site that died, its part is another's.
            missing = list[int]()
            for reply, part in self._dispatch(pending, make_call, lambda part, reason: None):
                if reply is None:
                    missing.append(part)
                else:
                    sums += reply
            pending = missing
        return sorted(sums, key=lambda entry: entry.index)

    def collect_residuals(self) -> dict[int, bytes]:
        residuals = dict[int, bytes]()
        for handle in self._handles:
            try:
                residuals |= self._unwrap_reply(
                    self._get(self._call(handle, "residuals", self._stage))
                )
            except (RayActorError, GetTimeoutError) as error:
                # Its clients have forgotten what waited with them.
                self._replace(handle, error)
        return residuals

    def collect_peaks(self) -> dict[str, dict[str, Any]]:
        peaks = dict[str, dict[str, Any]]()
        for number, handle in enumerate(self._handles):
            try:
                peaks[str(number)] = self._unwrap_reply(self._get(self._call(handle, "peak")))
            except (RayActorError, GetTimeoutError):
                # Nothing is asked of it any more, but for the first, which a commit replaces.
                continue
        return peaks

    def commit(self, weights: bytes, **facts: Any) -> Manifest:
        self._ensure_stage(self._handles[0])
        manifest: Manifest = self._call_with_replacement("commit", self._stage, weights, **facts)
        return manifest

    def close(self) -> None:
        for handle in self._handles:
            ray.kill(handle.actor)

    def _start_actor(self) -> Any:
        cluster = self._request.spec.cluster
        actor_class = ray.remote(SiteActor).options(
            num_cpus=cluster.cpus_per_worker,
            num_gpus=cluster.gpus_per_worker,
            scheduling_strategy="SPREAD",
        )
        return actor_class.remote(self._request)

    @staticmethod
    def _call(handle: _SiteHandle, method: str, *args: Any, **kwargs: Any) -> Any:
        return handle.actor.call.remote(method, *args, **kwargs)

    def _get(self, ref: Any) -> Any:
        """An answer of an idle site, which has it at once. Raises GetTimeoutError."""
        return ray.get(ref, timeout=self._timeout)

    def _get_timeout(self, handle: _SiteHandle) -> int:
        """Seconds that a site has for its next answer."""
        return self._timeout + (START_S if handle.starting else 0)

    def _call_with_replacement(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Asks the first site, and again the one that stands in for it."""
        handle = self._handles[0]
        while True:
            # An adapter may be large and its store far away: a commit takes what it takes.
            timeout = None if method == "commit" else self._get_timeout(handle)
            try:
                reply = ray.get(self._call(handle, method, *args, **kwargs), timeout=timeout)
            except (RayActorError, RayTaskError, GetTimeoutError) as error:
                self._replace(handle, error)
                self._ensure_stage(handle)
                continue
            handle.starting = False
            if method == "open":
                handle.payload_stage = self._stage
            return self._unwrap_reply(reply)

    def _ensure_stage(self, handle: _SiteHandle) -> None:
        """Opens the stage at a site that does not have it."""
        if self._stage >= 0 and handle.payload_stage != self._stage:
            handle.payload_stage = self._stage
            self._call(handle, "open", self._stage, self._payload)

    def _dispatch(
        self,
        work: Sequence[Any],
        make_call: Callable[[_SiteHandle, Any], tuple[str, tuple[Any, ...]]],
        make_failure: Callable[[Any, str], Any],
        *,
        get_home: Callable[[Any], int] | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Each piece of work on a free site; what came of it, and the piece.

        Where clients keep something, each has a site of its own.
        """
        pending, running = deque(work), dict[Any, tuple[_SiteHandle, Any, float]]()
        while pending or running:
            self._assign(pending, running, make_call, get_home)
            timeout = min(deadline for _, _, deadline in running.values()) - time.monotonic()
            ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, timeout))
            for ref in ready or self._list_late(running):
                handle, piece, _ = running.pop(ref)
                if not ready:
                    self._replace(handle, None)
                    yield make_failure(piece, f"it did not answer within {self._timeout} s"), piece
                    continue
                try:
                    reply = self._unwrap_reply(ray.get(ref))
                except (RayActorError, RayTaskError) as error:
                    yield make_failure(piece, self._replace(handle, error)), piece
                else:
                    self._deaths, handle.starting = 0, False
                    yield reply, piece

    def _assign(
        self,
        pending: deque[Any],
        running: dict[Any, tuple[_SiteHandle, Any, float]],
        make_call: Callable[[_SiteHandle, Any], tuple[str, tuple[Any, ...]]],
        get_home: Callable[[Any], int] | None,
    ) -> None:
        sticky = (
            get_home is not None and self._section is not None and self._section.has_client_state
        )
        for number, handle in enumerate(self._handles):
            if any(busy is handle for busy, _, _ in running.values()):
                continue
            candidates = (
                piece
                for piece in pending
                if not sticky or get_home(piece) % self.count == number  # type: ignore[misc]
            )
            piece = next(candidates, None)
            if piece is None:
                continue
            pending.remove(piece)
            method, args = make_call(handle, piece)
            deadline = time.monotonic() + self._get_timeout(handle)
            running[self._call(handle, method, *args)] = (handle, piece, deadline)

    @staticmethod
    def _list_late(running: dict[Any, tuple[_SiteHandle, Any, float]]) -> list[Any]:
        now = time.monotonic()
        return [ref for ref, (_, _, deadline) in running.items() if deadline <= now]

    def _replace(self, handle: _SiteHandle, error: RayError | None) -> str:
        """Another actor in its place; why the old one is gone. Raises TrainingFailed."""
        lines = str(error).splitlines() if error is not None else ["it did not answer"]
        messages = [line.strip() for line in lines if line.strip()]
        reason = messages[-1].rstrip(".") if messages else type(error).__name__
        self._deaths += 1
        max_failures = self._request.spec.cluster.max_failures
        if self._deaths > max_failures:
            problem = f"{self._deaths} of them died without an answer in between: {reason}"
            raise TrainingFailed("the federation's sites", problem, "Are they short of memory?")
        ray.kill(handle.actor)
        handle.actor, handle.payload_stage, handle.starting = self._start_actor(), -1, True
        return reason

    @staticmethod
    def _unwrap_reply(reply: Any) -> Any:
        if not isinstance(reply, _SiteError):
            return reply
        error = TrainingFailed("a site", reply.reason.rstrip("."), "")
        error.exit_code = reply.exit_code
        raise error
