"""Check before submission whether a run fits on a cluster, from its spec and its plan.

The plan needs the model's config and headers, and the data's first rows. If the service cannot read
them, the job makes the same check before it starts a worker.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from jobs.errors import InputError, NotInstalled, StoreError
from jobs.plan.estimate.machine import GB
from jobs.plan.preflight import validate_run
from jobs.spec.schema import RunSpec
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cluster.base import Capacity, Cluster
from orchestrator.control.dispatcher import FITS, PlacementResult
from orchestrator.control.job_spec import load_request
from orchestrator.registry.values import Run

MAX_CACHED_RESULTS = 2000
SHORTAGE_TIMEOUT_S = 120.0
"""A shortage must last this long: after a restart of the head the nodes rejoin one by one."""
S3 = "s3://"

log = logging.getLogger(__name__)


class Placement:
    """Checks runs for one cluster, and caches the results."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        shared_filesystem: bool,
        autoscaling: bool,
        store_opener: Callable[[str], ObjectStore] = open_store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._open, self._clock = cluster, store_opener, clock
        self._shared_filesystem, self._autoscaling = shared_filesystem, autoscaling
        self._results: OrderedDict[str, PlacementResult] = OrderedDict()
        self._short_since: dict[str, float] = {}
        """Since when the cluster has been too small for a run."""

    def __call__(self, run: Run) -> PlacementResult:
        """Check whether the run fits, as far as is known. Raise ClusterUnreachable."""
        if run.id in self._results:
            return self._results[run.id]
        result = self._check_run(run)
        if not result.wait_reason:
            self._short_since.pop(run.id, None)
            self._results[run.id] = result
            if len(self._results) > MAX_CACHED_RESULTS:
                self._results.popitem(last=False)
        return result

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
        try:
            validate_run(spec if capacity is None else set_node_memory(spec, capacity), quick=True)
        except InputError as invalid:
            return PlacementResult(rejection=str(invalid))
        except StoreError as error:
            log.warning("run %s: cannot check its plan: %s", run.id, error)
        except NotInstalled:
            # A control plane without torch cannot build the model: the job makes the plan.
            log.info("run %s: its job checks the model, which needs torch", run.id)
        return FITS

    def _reject_after_timeout(self, run: Run, shortage: str) -> PlacementResult:
        since = self._short_since.setdefault(run.id, self._clock())
        if self._clock() - since < SHORTAGE_TIMEOUT_S:
            return PlacementResult(wait_reason=shortage)
        return PlacementResult(rejection=shortage)

    def _is_visible(self, spec: RunSpec) -> bool:
        paths = (spec.model.path, spec.data.train, spec.data.eval or S3, spec.store)
        return self._shared_filesystem or all(path.startswith(S3) for path in paths)


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
