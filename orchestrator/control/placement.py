"""Whether a run fits on a cluster, known before it is submitted: from its spec, and its plan.

The plan needs the model's config and headers and the data's first rows. Where the service can't see
what the cluster sees, that check is the job's own, which makes it before a worker starts.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from jobs.errors import Fault, InputError, StoreError
from jobs.plan.estimate.machine import GB
from jobs.plan.preflight import validate_run
from jobs.spec.schema import RunSpec
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import format_run_key
from orchestrator.cluster.base import Capacity, Cluster
from orchestrator.control.dispatcher import FITS, PlacementResult
from orchestrator.control.resolve import ResolvedRun, resolve_run
from orchestrator.registry.run_request import REQUEST_FILE, read_request
from orchestrator.registry.values import Run

MAX_CACHED_RESULTS = 2000
SHORTAGE_TIMEOUT_S = 120.0
"""Until what a cluster lacks counts as lacking: after its head was restarted its nodes come back
one by one."""
S3 = "s3://"

log = logging.getLogger(__name__)


class Placement:
    """Judges runs for one cluster; each is looked at once."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        shared_filesystem: bool,
        autoscaling: bool,
        store_opener: Callable[[str], ObjectStore] = open_store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._shared_filesystem, self._autoscaling, self._open = (
            cluster,
            shared_filesystem,
            autoscaling,
            store_opener,
        )
        self._clock = clock
        self._results: OrderedDict[str, PlacementResult] = OrderedDict()
        self._short_since: dict[str, float] = {}
        """Since when the cluster was too small for a run."""

    def __call__(self, run: Run) -> PlacementResult:
        """Whether the run can be placed there, as far as is known. Raises ClusterUnreachable."""
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
            resolved = _read_resolved_run(self._open(run.store), run)
        except InputError as invalid:
            return PlacementResult(rejection=str(invalid))
        except StoreError as error:
            # The paper is read again when the run is submitted.
            log.warning("run %s: its request can't be read: %s", run.id, error)
            return FITS
        capacity = None if self._autoscaling else self._cluster.get_capacity()
        if capacity is not None and (shortage := find_shortage(resolved.spec, capacity)):
            return self._reject_after_timeout(run, shortage)
        if not self._is_visible(resolved.spec):
            return FITS
        try:
            validate_run(
                resolved.spec if capacity is None else set_node_memory(resolved.spec, capacity),
                quick=True,
            )
        except InputError as invalid:
            return PlacementResult(rejection=str(invalid))
        except StoreError as error:
            log.warning("run %s could not be checked: %s", run.id, error)
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
    """What the whole cluster has too little of, busy or not; empty where it suffices."""
    cluster = spec.cluster
    for name, per_worker, available in (
        ("CPUs", cluster.cpus_per_worker, capacity.cpus),
        ("GPUs", cluster.gpus_per_worker, capacity.gpus),
    ):
        if (needed := per_worker * spec.workers) > available:
            return f"it needs {needed} {name}, the whole cluster has {available:g}"
    return ""


def set_node_memory(spec: RunSpec, capacity: Capacity) -> RunSpec:
    """The spec with the memory of the cluster's largest node, where it names none and needs it."""
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


def _read_resolved_run(store: ObjectStore, run: Run) -> ResolvedRun:
    request = read_request(store, format_run_key(run.id, REQUEST_FILE))
    if isinstance(request, Fault):
        raise InputError([request])
    return resolve_run(request.kind, request.parse_spec(), [run.store])
