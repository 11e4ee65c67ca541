"""A site as a Ray actor, and the typed handle by which the driver calls it without torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray

from jobs.errors import JobsError, TrainingFailed
from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientTask,
    ClientUpdate,
    CommitRecord,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.store.adapters.manifest import Manifest
from jobs.store.open import open_store
from jobs.train.request import FederationRequest
from jobs.train.worker import ENVIRONMENT
from slora.errors import SloraError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SiteError:
    """An error of a site that would repeat: it ends the run, and the actor lives on."""

    reason: str
    exit_code: int


def _return_errors(
    method: Callable[Concatenate[SiteActor, Arguments], Result],
) -> Callable[Concatenate[SiteActor, Arguments], Result | SiteError]:
    """Return this package's errors as values. Any other exception costs the actor."""

    @functools.wraps(method)
    def call(
        actor: SiteActor, /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | SiteError:
        try:
            return method(actor, *args, **kwargs)
        except (JobsError, SloraError) as error:
            return SiteError(str(error), getattr(error, "exit_code", 1))

    return call


class SiteActor:
    """The class of the actor: a site in a process of its own."""

    def __init__(self, request: FederationRequest) -> None:
        cluster = request.spec.cluster
        on_gpu = cluster.gpus_per_worker > 0
        os.environ.update(ENVIRONMENT, **({} if on_gpu else {"DS_ACCELERATOR": "cpu"}))
        # Imported here because the libraries read the environment, and the driver needs none.
        import torch

        from jobs.federation.sites.site import Site
        from jobs.train.localize import localize_request

        if not on_gpu:
            torch.set_num_threads(cluster.cpus_per_worker)
        device = torch.device("cuda:0" if on_gpu else "cpu")
        self._site = Site(localize_request(request), open_store(request.spec.store), device)

    @_return_errors
    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        return self._site.open_stage(stage, payload)

    @_return_errors
    def get_shapes(self) -> dict[str, tuple[int, int]]:
        return self._site.get_shapes()

    @_return_errors
    def score_client(self, client: int) -> ClientScores | ClientFailure:
        return self._site.score_client(client)

    @_return_errors
    def run_task(self, task: ClientTask) -> ClientUpdate | ClientFailure:
        return self._site.run_task(task)

    @_return_errors
    def evaluate(self, stage: int, weights: bytes, part: int, parts: int) -> list[EvaluationSums]:
        return self._site.evaluate(stage, weights, part=part, parts=parts)

    @_return_errors
    def get_residuals(self, stage: int) -> dict[int, bytes]:
        return self._site.get_residuals(stage)

    @_return_errors
    def measure_peak(self) -> dict[str, Any]:
        return self._site.measure_peak()

    @_return_errors
    def commit(self, stage: int, weights: bytes, record: CommitRecord) -> Manifest:
        return self._site.commit(stage, weights, record)


@dataclass(frozen=True)
class PendingReply(Generic[Result]):
    """The reply of an actor that may not have come yet."""

    ref: Any

    def get(self, timeout: float | None = None) -> Result:
        """Wait for the reply. Raise TrainingFailed for a SiteError, and Ray's own errors."""
        reply = ray.get(self.ref, timeout=timeout)
        if isinstance(reply, SiteError):
            error = TrainingFailed("a site", reply.reason.rstrip("."), "")
            error.exit_code = reply.exit_code
            raise error
        result: Result = reply
        return result


class SiteHandle:
    """One running actor and what is known about it."""

    def __init__(self, request: FederationRequest) -> None:
        self._request = request
        self.start()

    def start(self) -> None:
        """Start an actor."""
        cluster = self._request.spec.cluster
        actor_class = ray.remote(SiteActor).options(
            num_cpus=cluster.cpus_per_worker,
            num_gpus=cluster.gpus_per_worker,
            scheduling_strategy="SPREAD",
        )
        self.actor: Any = actor_class.remote(self._request)
        self.payload_stage = -1
        """The stage whose payload it has."""
        self.is_starting = True
        """True until its first reply."""

    def stop(self) -> None:
        """Kill the actor."""
        ray.kill(self.actor)

    def open_stage(self, stage: int, payload: StagePayload) -> PendingReply[StageInfo]:
        self.payload_stage = stage
        return PendingReply(self.actor.open_stage.remote(stage, payload))

    def get_shapes(self) -> PendingReply[dict[str, tuple[int, int]]]:
        return PendingReply(self.actor.get_shapes.remote())

    def score_client(self, client: int) -> PendingReply[ClientScores | ClientFailure]:
        return PendingReply(self.actor.score_client.remote(client))

    def run_task(self, task: ClientTask) -> PendingReply[ClientUpdate | ClientFailure]:
        self.payload_stage = task.stage
        return PendingReply(self.actor.run_task.remote(task))

    def evaluate(
        self, stage: int, weights: bytes, *, part: int, parts: int
    ) -> PendingReply[list[EvaluationSums]]:
        return PendingReply(self.actor.evaluate.remote(stage, weights, part, parts))

    def get_residuals(self, stage: int) -> PendingReply[dict[int, bytes]]:
        return PendingReply(self.actor.get_residuals.remote(stage))

    def measure_peak(self) -> PendingReply[dict[str, Any]]:
        return PendingReply(self.actor.measure_peak.remote())

    def commit(self, stage: int, weights: bytes, record: CommitRecord) -> PendingReply[Manifest]:
        return PendingReply(self.actor.commit.remote(stage, weights, record))
