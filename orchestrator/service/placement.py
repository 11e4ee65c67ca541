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
from jobs.predict.machine import GB
from jobs.preflight import check
from jobs.spec import Spec
from jobs.store.objects import ObjectStore, open_store
from orchestrator.cluster.door import Capacity, Cluster
from orchestrator.registry.request_paper import REQUEST, read_request
from orchestrator.registry.values import Run
from orchestrator.service.asked import Asked, asked_for
from orchestrator.service.dispatcher import FITS, Verdict
from orchestrator.service.papers import paper_key

REMEMBERED = 2000
PATIENCE_S = 120.0
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
        shares_files: bool,
        grows: bool,
        opened: Callable[[str], ObjectStore] = open_store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._shares, self._grows, self._open = cluster, shares_files, grows, opened
        self._clock = clock
        self._known: OrderedDict[str, Verdict] = OrderedDict()
        self._lacking: dict[str, float] = {}
        """Since when the cluster was too small for a run."""

    def __call__(self, run: Run) -> Verdict:
        """Whether the run can be placed there, as far as is known. Raises ClusterUnreachable."""
        if run.id in self._known:
            return self._known[run.id]
        verdict = self._judged(run)
        if not verdict.waits:
            self._lacking.pop(run.id, None)
            self._known[run.id] = verdict
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return verdict

    def _judged(self, run: Run) -> Verdict:
        try:
            asked = _asked(self._open(run.store), run)
        except InputError as wrong:
            return Verdict(never=str(wrong))
        except StoreError as error:
            # The paper is read again when the run is submitted.
            log.warning("run %s: its request can't be read: %s", run.id, error)
            return FITS
        capacity = None if self._grows else self._cluster.capacity()
        if capacity is not None and (lack := lacking(asked.spec, capacity)):
            return self._too_small(run, lack)
        if not self._visible(asked.spec):
            return FITS
        try:
            check(asked.spec if capacity is None else on_nodes(asked.spec, capacity), quick=True)
        except InputError as wrong:
            return Verdict(never=str(wrong))
        except StoreError as error:
            log.warning("run %s could not be checked: %s", run.id, error)
        return FITS

    def _too_small(self, run: Run, lack: str) -> Verdict:
        since = self._lacking.setdefault(run.id, self._clock())
        if self._clock() - since < PATIENCE_S:
            return Verdict(waits=lack)
        return Verdict(never=lack)

    def _visible(self, spec: Spec) -> bool:
        places = (spec.model.path, spec.data.train, spec.data.eval or S3, spec.store)
        return self._shares or all(place.startswith(S3) for place in places)


def lacking(spec: Spec, capacity: Capacity) -> str:
    """What the whole cluster has too little of, busy or not; empty where it suffices."""
    cluster = spec.cluster
    for name, each, there in (
        ("CPUs", cluster.cpus_per_worker, capacity.cpus),
        ("GPUs", cluster.gpus_per_worker, capacity.gpus),
    ):
        if (needed := each * spec.workers) > there:
            return f"it needs {needed} {name}, the whole cluster has {there:g}"
    return ""


def on_nodes(spec: Spec, capacity: Capacity) -> Spec:
    """The spec with the memory of the cluster's largest node, where it names none and needs it."""
    machine = spec.cluster.machine
    unknown = capacity.node_memory is None or spec.cluster.gpus_per_worker > 0
    if machine.memory_gb is not None or unknown or not capacity.nodes:
        return spec
    assert capacity.node_memory is not None
    each = machine.workers_per_node or -(-spec.workers // capacity.nodes)
    memory = capacity.node_memory / min(each, spec.workers) / GB
    known = machine.model_copy(update={"workers_per_node": each, "memory_gb": memory})
    cluster = spec.cluster.model_copy(update={"machine": known})
    return spec.model_copy(update={"cluster": cluster})


def _asked(store: ObjectStore, run: Run) -> Asked:
    found = read_request(store, paper_key(run.id, REQUEST))
    if isinstance(found, Fault):
        raise InputError([found])
    return asked_for(found.kind, found.mapping(), [run.store])
