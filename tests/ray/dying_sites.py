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

from jobs.cluster_run import connect
from jobs.federate.check import check_federated
from jobs.federate.door import load_federated
from jobs.federate.messages import Kit
from jobs.federate.ray_sites import RaySites

LEDGER = {"tokens": 1, "seconds": 1.0, "workers": 2, "wire": {}, "memory": {}}
"""Of a run that was not."""


def main() -> int:
    """Both sites open a stage; then both are killed."""
    asked = load_federated(Path(sys.argv[1]))
    checked = check_federated(asked).checked
    request = dataclasses.replace(checked.request("dying-sites"), federation=asked.section)
    connect()
    sites = RaySites(request)
    opened = sites.open(0, Kit())
    before = sites.peaks()
    # These two and no others: the machine may have more that are called so.
    for seat in sites._seats:
        ray.kill(seat.actor)
        _gone(seat.actor)
    after = sites.peaks()
    made = sites.commit(opened.first, attempt=1, evaluations={}, ledger=LEDGER)
    told = {"before": len(before), "after": len(after), "adapter": made.label}
    print(json.dumps(told))
    sites.close()
    ray.shutdown()
    return 0


def _gone(actor: Any) -> None:
    """Waits for its death: it answers until it is there."""
    with suppress(RayActorError):
        while True:
            ray.get(actor.ask.remote("peak"))


if __name__ == "__main__":
    sys.exit(main())
