"""`python -m tests.ray.dying_sites SPEC`: a driver whose sites die at its end.

Prints what the sites tell of their memory after that, and the adapter that they commit.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from jobs.federation.check import check_federation
from jobs.federation.sites.messages import StagePayload
from jobs.federation.sites.ray_sites import RaySites
from jobs.spec.load import load_spec
from jobs.train.driver import connect_ray

LEDGER = {"tokens": 1, "seconds": 1.0, "workers": 2, "wire": {}, "memory": {}}
"""Of a run that was not."""


def main() -> int:
    """Both sites open a stage; then both are killed."""
    federated = load_spec(Path(sys.argv[1]))
    checked = check_federation(federated).validated_run
    request = dataclasses.replace(checked.make_request("dying-sites"), federation=federated.section)
    connect_ray()
    sites = RaySites(request)
    opened = sites.open_stage(0, StagePayload())
    before = sites.collect_peaks()
    # These two and no others: the machine may have more that are called so.
    for handle in sites._handles:
        ray.kill(handle.actor)
        _wait_for_death(handle.actor)
    after = sites.collect_peaks()
    manifest = sites.commit(opened.initial_weights, attempt=1, evaluations={}, ledger=LEDGER)
    report = {"before": len(before), "after": len(after), "adapter": manifest.label}
    print(json.dumps(report))
    sites.close()
    ray.shutdown()
    return 0


def _wait_for_death(actor: Any) -> None:
    """Waits for its death: it answers until it is there."""
    with suppress(RayActorError):
        while True:
            ray.get(actor.ask.remote("peak"))


if __name__ == "__main__":
    sys.exit(main())
