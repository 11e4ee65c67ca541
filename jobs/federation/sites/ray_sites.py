"""Sites on a Ray cluster: actors that load the base once and train many clients in turn.

An actor that dies, or does not reply in time, is replaced. The client that it was training is
dropped from its round, and nothing else is lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from jobs.errors import TrainingFailed
from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientSketches,
    ClientTask,
    ClientUpdate,
    CommitRecord,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.federation.sites.site import Site
from jobs.federation.sites.site_actor import PendingReply, SiteHandle
from jobs.federation.sites.sites_interface import TaskResult
from jobs.store.adapters.manifest import Manifest
from jobs.train.request import FederationRequest

START_TIMEOUT_S = 180
"""Additional seconds for an actor's first reply: it imports torch and loads its base before."""
COMMIT_TIMEOUT_S = 4 * 3600
"""An adapter may be large and its store slow."""
NOTICE_S = 10
"""After so many seconds a line says what is waited for."""

Work = TypeVar("Work")
Reply = TypeVar("Reply")
Failure = TypeVar("Failure")


@dataclass(frozen=True)
class _RunningCall(Generic[Work, Reply]):
    handle: SiteHandle
    work: Work
    reply: PendingReply[Reply]
    deadline: float


class RaySites:
    """The actors of one federation."""

    def __init__(self, request: FederationRequest) -> None:
        self._request, self._timeout = request, request.spec.cluster.timeout
        self._handles = [SiteHandle(request) for _ in range(request.spec.workers)]
        self._stage, self._payload, self._deaths = -1, StagePayload(), 0

    @property
    def count(self) -> int:
        return len(self._handles)

    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        if self._stage < 0:
            self._wait_for_actors()
        self._stage, self._payload = stage, payload
        return self._call_with_replacement(self._open_stage)

    def _wait_for_actors(self) -> None:
        """Wait until all actors run: a cluster may take a while to have room. Raise TrainingFailed
        if it does not have it in time.
        """
        pings = [handle.call(Site.measure_peak).ref for handle in self._handles]
        limit = START_TIMEOUT_S + self._timeout
        _, waiting = ray.wait(pings, num_returns=len(pings), timeout=min(NOTICE_S, limit))
        if waiting:
            count = f"{len(waiting)} of {len(pings)} sites"
            print(f"waiting for {count} to start, at most {limit} s", flush=True)
            _, waiting = ray.wait(pings, num_returns=len(pings), timeout=limit - NOTICE_S)
        if waiting:
            problem = f"{len(waiting)} of {len(pings)} did not start within {limit} s"
            remedy = "Use fewer cluster.workers, a larger cluster, or a longer cluster.timeout."
            raise TrainingFailed("the federation's sites", problem, remedy)
        for handle in self._handles:
            handle.is_starting = False

    def get_shapes(self) -> dict[str, tuple[int, int]]:
        return self._call_with_replacement(lambda handle: handle.call(Site.get_shapes))

    def score_clients(self, clients: Sequence[int]) -> list[ClientScores | ClientFailure]:
        replies = self._dispatch(
            clients,
            lambda handle, client: handle.call(Site.score_client, client),
            lambda client, reason: ClientFailure(client, 0, reason),
        )
        return [reply for reply, _ in replies]

    def sketch_clients(
        self, clients: Sequence[int], weights: bytes
    ) -> list[ClientSketches | ClientFailure]:
        def call(handle: SiteHandle, client: int) -> PendingReply[ClientSketches | ClientFailure]:
            self._ensure_stage(handle)
            return handle.call(Site.sketch_client, client, self._stage, weights)

        replies = self._dispatch(
            clients, call, lambda client, reason: ClientFailure(client, 0, reason)
        )
        return [reply for reply, _ in replies]

    def run_tasks(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        payload_sizes = dict[int, int]()

        def call(
            handle: SiteHandle, task: ClientTask
        ) -> PendingReply[ClientUpdate | ClientFailure]:
            needs_payload = task.payload is not None or handle.payload_stage != self._stage
            payload = self._payload if needs_payload else None
            payload_sizes[task.client] = payload.size if payload else 0
            handle.payload_stage = self._stage
            return handle.call(Site.run_task, replace(task, payload=payload))

        def fail(task: ClientTask, reason: str) -> ClientFailure:
            return ClientFailure(task.client, task.round, reason)

        # A client with state on its worker is always trained by the same one.
        keep_home = self._request.federation.has_client_state
        get_home = (lambda task: task.client % self.count) if keep_home else None
        for reply, task in self._dispatch(tasks, call, fail, get_home=get_home):
            yield reply, payload_sizes[task.client]

    def evaluate(self, weights: bytes) -> list[EvaluationSums]:
        parts = self.count

        def call(handle: SiteHandle, part: int) -> PendingReply[list[EvaluationSums]]:
            self._ensure_stage(handle)
            return handle.call(Site.evaluate, self._stage, weights, part=part, parts=parts)

        sums, pending = list[EvaluationSums](), list(range(parts))
        while pending:
            # The part of an actor that died is evaluated by another.
            missing = list[int]()
            for reply, part in self._dispatch(pending, call, lambda part, reason: None):
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
                # An idle actor replies at once.
                residuals |= handle.call(Site.get_residuals, self._stage).get(self._timeout)
            except (RayActorError, GetTimeoutError) as error:
                # The residuals of its clients are lost.
                self._replace(handle, error)
        return residuals

    def collect_peaks(self) -> dict[str, dict[str, Any]]:
        peaks = dict[str, dict[str, Any]]()
        for number, handle in enumerate(self._handles):
            try:
                peaks[str(number)] = handle.call(Site.measure_peak).get(self._timeout)
            except (RayActorError, GetTimeoutError):
                # Only the first actor is still needed, and the commit replaces that one.
                continue
        return peaks

    def commit(self, weights: bytes, record: CommitRecord) -> Manifest:
        self._ensure_stage(self._handles[0])
        return self._call_with_replacement(
            lambda handle: handle.call(Site.commit, self._stage, weights, record),
            extra_timeout=COMMIT_TIMEOUT_S,
        )

    def close(self) -> None:
        for handle in self._handles:
            handle.stop()

    def _call_with_replacement(
        self, call: Callable[[SiteHandle], PendingReply[Reply]], *, extra_timeout: int = 0
    ) -> Reply:
        """Call the first actor; if it dies, replace it and call again."""
        handle = self._handles[0]
        while True:
            try:
                reply = call(handle).get(self._get_timeout(handle) + extra_timeout)
            except (RayActorError, RayTaskError, GetTimeoutError) as error:
                self._replace(handle, error)
                self._ensure_stage(handle)
                continue
            handle.is_starting = False
            return reply

    def _ensure_stage(self, handle: SiteHandle) -> None:
        """Open the current stage at an actor that does not have it."""
        if self._stage >= 0 and handle.payload_stage != self._stage:
            self._open_stage(handle)

    def _open_stage(self, handle: SiteHandle) -> PendingReply[StageInfo]:
        handle.payload_stage = self._stage
        return handle.call(Site.open_stage, self._stage, self._payload)

    def _dispatch(
        self,
        work: Sequence[Work],
        call: Callable[[SiteHandle, Work], PendingReply[Reply]],
        fail: Callable[[Work, str], Failure],
        *,
        get_home: Callable[[Work], int] | None = None,
    ) -> Iterator[tuple[Reply | Failure, Work]]:
        """Give each item of work to a free actor; yield its reply or failure, and the item.

        With `get_home` an item waits for the actor of this number.
        """
        pending, running = deque(work), dict[Any, _RunningCall[Work, Reply]]()
        while pending or running:
            for handle, item in self._assign(pending, running, get_home):
                reply = call(handle, item)
                deadline = time.monotonic() + self._get_timeout(handle)
                running[reply.ref] = _RunningCall(handle, item, reply, deadline)
            now = time.monotonic()
            timeout = min(running_call.deadline for running_call in running.values()) - now
            ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, timeout))
            for ref in ready or _list_overdue(running):
                finished = running.pop(ref)
                if not ready:
                    self._replace(finished.handle, None)
                    reason = f"it did not reply within {self._timeout} s"
                    yield fail(finished.work, reason), finished.work
                    continue
                try:
                    result = finished.reply.get()
                except (RayActorError, RayTaskError) as error:
                    yield fail(finished.work, self._replace(finished.handle, error)), finished.work
                else:
                    self._deaths, finished.handle.is_starting = 0, False
                    yield result, finished.work

    def _assign(
        self,
        pending: deque[Work],
        running: dict[Any, _RunningCall[Work, Reply]],
        get_home: Callable[[Work], int] | None,
    ) -> list[tuple[SiteHandle, Work]]:
        """Take one item of the pending work for each free actor."""
        assigned = list[tuple[SiteHandle, Work]]()
        busy = [running_call.handle for running_call in running.values()]
        for number, handle in enumerate(self._handles):
            if handle in busy:
                continue
            candidates = (item for item in pending if not get_home or get_home(item) == number)
            item = next(candidates, None)
            if item is not None:
                pending.remove(item)
                assigned.append((handle, item))
        return assigned

    def _get_timeout(self, handle: SiteHandle) -> int:
        """Return the seconds that an actor has for its next reply."""
        return self._timeout + (START_TIMEOUT_S if handle.is_starting else 0)

    def _replace(self, handle: SiteHandle, error: RayError | None) -> str:
        """Start another actor and return why the old one is lost. Raise TrainingFailed."""
        lines = str(error).splitlines() if error is not None else ["it did not reply"]
        messages = [line.strip() for line in lines if line.strip()]
        reason = messages[-1].rstrip(".") if messages else type(error).__name__
        self._deaths += 1
        if self._deaths > self._request.spec.cluster.max_failures:
            problem = f"{self._deaths} losses in a row, the last one because of this: {reason}"
            raise TrainingFailed(
                "the federation's sites", problem, "Check whether they run out of memory."
            )
        handle.stop()
        handle.start()
        return reason


def _list_overdue(running: dict[Any, _RunningCall[Work, Reply]]) -> list[Any]:
    now = time.monotonic()
    return [ref for ref, running_call in running.items() if running_call.deadline <= now]
