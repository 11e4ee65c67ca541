"""Run `python -m tests.ray.dying_sites SPEC`: a driver whose sites are killed before the commit.

Prints how many sites report their memory before and after, and the adapter that is committed.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from jobs.federation.check import check_federation
from jobs.federation.sites.messages import CommitRecord, StagePayload
from jobs.federation.sites.ray_sites import RaySites
from jobs.federation.sites.site import Site
from jobs.spec.kinds import require_kind
from jobs.spec.load import load_spec
from jobs.spec.schema import FederatedSpec
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.driver import connect_ray

RUN = "dying-sites"
LEDGER = {"tokens": 1, "seconds": 1.0, "workers": 2, "wire": {}, "memory": {}}
"""The ledger of an imaginary run."""


def main() -> int:
    """Open a stage at both sites, then kill both."""
    validated = check_federation(require_kind(load_spec(Path(sys.argv[1])), FederatedSpec))
    runs = RunStore(open_store(validated.federated_spec.store), RUN)
    request = validated.extend_request(validated.validated_run.make_request(RUN), runs)
    connect_ray()
    sites = RaySites(request)
    info = sites.open_stage(0, StagePayload())
    before = sites.collect_peaks()
    # Only these two: the machine may have other processes of this name.
    for handle in sites._handles:
        ray.kill(handle.actor)
        _wait_for_death(handle.actor)
    after = sites.collect_peaks()
    record = CommitRecord(attempt=1, evaluations={}, ledger=LEDGER)
    manifest = sites.commit(info.initial_weights, record)
    report = {"before": len(before), "after": len(after), "adapter": manifest.label}
    print(json.dumps(report))
    sites.close()
    ray.shutdown()
    return 0


def _wait_for_death(actor: Any) -> None:
    """Wait until the actor is dead: it replies until then."""
    with suppress(RayActorError):
        while True:
            ray.get(actor.call.remote(Site.measure_peak))


if __name__ == "__main__":
    sys.exit(main())
