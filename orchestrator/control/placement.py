"""Check before submission whether a run fits on a cluster, from its spec and its plan.

The plan needs the model's config and headers, and the data's first rows. A process with limits
looks at them. The run waits meanwhile, but not the loop that asks. What is not known after a look,
the job checks before it starts a worker.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from jobs.errors import InputError, StoreError
from jobs.places.places import Places
from jobs.plan.estimate.machine import GB
from jobs.spec.address_keys import list_addresses
from jobs.spec.schema import RunSpec
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cluster.base import Capacity, Cluster
from orchestrator.control.dispatcher import FITS, PlacementResult
from orchestrator.control.job_spec import load_request
from orchestrator.control.looking.look_protocol import LookRequest, LookResult
from orchestrator.control.looking.look_runner import LookRunner
from orchestrator.registry.values import Run

MAX_CACHED_RESULTS = 2000
SHORTAGE_TIMEOUT_S = 120.0
"""A shortage must last this long: after a restart of the head the nodes rejoin one by one."""
S3 = "s3://"
BEING_CHECKED = PlacementResult(wait_reason="its plan is being checked")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _RunLook:
    run: str
    result: Future[LookResult]


class Placement:
    """Checks runs for one cluster, and caches the results."""

    def __init__(
        self,
        cluster: Cluster,
        looks: LookRunner,
        *,
        shared_filesystem: bool,
        autoscaling: bool,
        find_places: Callable[[str, str], Places | None] = lambda project, store: None,
        store_opener: Callable[[str], ObjectStore] = open_store,
        clock: Callable[[], float] = time.monotonic,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """`find_places` returns what a project's runs may read that use a store.

        `wake` is called in another thread when the result of a run is known.
        """
        self._cluster, self._open, self._clock = cluster, store_opener, clock
        self._looks, self._find_places, self._wake = looks, find_places, wake
        self._looks_by_project = dict[str, _RunLook]()
        """One for each project: its other runs wait for it."""
        self._waiting = OrderedDict[str, None]()
        """Runs that wait for that of another one, so that their requests are not read again."""
        self._shared_filesystem, self._autoscaling = shared_filesystem, autoscaling
        self._results: OrderedDict[str, PlacementResult] = OrderedDict()
        self._short_since: dict[str, float] = {}
        """Since when the cluster has been too small for a run."""

    def __call__(self, run: Run) -> PlacementResult:
        """Check whether the run fits, as far as is known. Raise ClusterUnreachable, and
        DatabaseUnreachable if nobody can tell what its project may read.
        """
        self._collect_result(run.project)
        if run.id in self._results:
            return self._results[run.id]
        if run.project in self._looks_by_project and run.id in self._waiting:
            return BEING_CHECKED
        result = self._check_run(run)
        if not result.wait_reason:
            self._short_since.pop(run.id, None)
            self._add_result(run.id, result)
        return result

    def has_result(self, run: Run) -> bool:
        """Return whether the result is known without reading anything."""
        return run.id in self._results

    def _check_run(self, run: Run) -> PlacementResult:
        try:
            spec = load_request(self._open(run.store), run).load_spec()
        except InputError as invalid:
            return PlacementResult(rejection=str(invalid))
        except StoreError as error:
            # The request is read again when the run is submitted.
            log.warning("run %s: cannot read its request: %s", run.id, error)
            return FITS
        capacity = None if self._autoscaling else self._cluster.get_capacity()
        if capacity is not None and (shortage := find_shortage(spec, capacity)):
            return self._reject_after_timeout(run, shortage)
        if not self._is_visible(spec):
            return FITS
        self._start_look(run, spec if capacity is None else set_node_memory(spec, capacity))
        return BEING_CHECKED

    def _start_look(self, run: Run, spec: RunSpec) -> None:
        self._waiting[run.id] = None
        if len(self._waiting) > MAX_CACHED_RESULTS:
            self._waiting.popitem(last=False)
        if run.project in self._looks_by_project:
            return
        values = spec.training.model_dump(mode="json")
        places = self._find_places(run.project, run.store)
        request = LookRequest(question="validate_run", spec=values, places=places)
        result = self._looks.submit(run.project, request)
        self._looks_by_project[run.project] = _RunLook(run.id, result)
        result.add_done_callback(lambda _: self._wake())

    def _collect_result(self, project: str) -> None:
        """Keep the result of the project's look, if it is over."""
        look = self._looks_by_project.get(project)
        if look is None or not look.result.done():
            return
        del self._looks_by_project[project]
        if not look.result.cancelled():
            self._add_result(look.run, _judge_look(look.run, look.result.result()))

    def _add_result(self, run_id: str, result: PlacementResult) -> None:
        self._waiting.pop(run_id, None)
        self._results[run_id] = result
        if len(self._results) > MAX_CACHED_RESULTS:
            self._results.popitem(last=False)

    def _reject_after_timeout(self, run: Run, shortage: str) -> PlacementResult:
        since = self._short_since.setdefault(run.id, self._clock())
        if self._clock() - since < SHORTAGE_TIMEOUT_S:
            return PlacementResult(wait_reason=shortage)
        return PlacementResult(rejection=shortage)

    def _is_visible(self, spec: RunSpec) -> bool:
        addresses = list_addresses(spec)
        return self._shared_filesystem or all(item.text.startswith(S3) for item in addresses)


def _judge_look(run_id: str, result: LookResult) -> PlacementResult:
    """Return the placement after a look: only faults reject it, anything else its job checks."""
    if result.faults:
        return PlacementResult(rejection=str(InputError(result.faults)))
    if reason := result.unchecked or result.store_error:
        log.warning("run %s: its job checks its plan: %s", run_id, reason)
    return FITS


def find_shortage(spec: RunSpec, capacity: Capacity) -> str:
    """Describe what the whole cluster has too little of, busy or not; empty if it suffices."""
    cluster = spec.cluster
    for name, per_worker, available in (
        ("CPUs", cluster.cpus_per_worker, capacity.cpus),
        ("GPUs", cluster.gpus_per_worker, capacity.gpus),
    ):
        if (needed := per_worker * spec.workers) > available:
            return f"the run needs {needed} {name}, but the cluster has {available:g} in total"
    return ""


def set_node_memory(spec: RunSpec, capacity: Capacity) -> RunSpec:
    """Set the memory of the cluster's largest node in a CPU spec that does not name it."""
    machine = spec.cluster.machine
    unknown = capacity.node_memory is None or spec.cluster.gpus_per_worker > 0
    if machine.memory_gb is not None or unknown or not capacity.nodes:
        return spec
    assert capacity.node_memory is not None
    workers_per_node = machine.workers_per_node or -(-spec.workers // capacity.nodes)
    memory = capacity.node_memory / min(workers_per_node, spec.workers) / GB
    described = machine.model_copy(
        update={"workers_per_node": workers_per_node, "memory_gb": memory}
    )
    cluster = spec.cluster.model_copy(update={"machine": described})
    return spec.model_copy(update={"cluster": cluster})
