"""A site as a Ray actor, and the handle by which the driver calls the methods of `Site`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import ray

from jobs.errors import JobsError, TrainingFailed
from jobs.store.open import open_store
from jobs.train.request import FederationRequest
from jobs.train.worker import ENVIRONMENT
from slora.errors import SloraError

if TYPE_CHECKING:
    from jobs.federation.sites.site import Site

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SiteError:
    """An error of a site that would repeat: it ends the run, and the actor lives on."""

    reason: str
    exit_code: int


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

    def call(
        self,
        method: Callable[Concatenate[Site, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result | SiteError:
        """Call a method of the site. Any exception but this package's errors costs the actor."""
        try:
            return method(self._site, *args, **kwargs)
        except (JobsError, SloraError) as error:
            return SiteError(str(error), getattr(error, "exit_code", 1))


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

    def call(
        self,
        method: Callable[Concatenate[Site, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> PendingReply[Result]:
        """Call a method of the actor's site, such as `Site.run_task`, with its own arguments."""
        return PendingReply(self.actor.call.remote(method, *args, **kwargs))
