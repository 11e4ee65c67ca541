"""`python -m jobs.federate --spec SPEC`: many clients, one adapter. Checks, trains, tells."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from jobs.at_hand import spec_at_hand
from jobs.ended import ended
from jobs.errors import JobsError
from jobs.federate.check import check_federated
from jobs.federate.door import Federated, load_federated
from jobs.federate.papers import keep_asked
from jobs.federate.partition import Partition
from jobs.lease import Lease
from jobs.report import summary
from jobs.request import Request
from jobs.run_arguments import run_parser
from jobs.spec_file import dump_spec
from jobs.store.objects import open_store
from jobs.store.runs import PLAN, SPEC, RunStore, new_run_id
from jobs.telling import told


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 3 Ray is not reachable."""
    asked = run_parser("jobs.federate", main.__doc__).parse_args(arguments)

    def work() -> None:
        found = load_federated(spec_at_hand(asked.spec), asked.set)
        now = datetime.datetime.now(datetime.UTC)
        _run(found, asked.run or new_run_id(found.spec.name, now), asked.attempt)

    return ended(work)


def _run(asked: Federated, run_id: str, attempt: int) -> None:
    checked = check_federated(asked)
    runs = RunStore(open_store(asked.spec.store), run_id)
    keep_asked(asked, runs)
    runs.write_text(SPEC, dump_spec(asked.spec))
    runs.write_json(PLAN, checked.checked.plan.to_json())
    request = dataclasses.replace(checked.checked.request(run_id), federation=asked.section)
    print(f"run {run_id}", flush=True)
    with Lease(runs, attempt), told(runs):
        try:
            assert checked.partition is not None
            _federate(request, runs, checked.partition, attempt)
        except JobsError as failed:
            runs.events.append({"event": "failed", "time": time.time(), "why": str(failed)})
            raise
    Console(width=80).print(summary(runs))


def _federate(request: Request, runs: RunStore, split: Partition, attempt: int) -> None:
    # Ray and torch only after the check: bad input answers in a second, and starts nothing.
    from jobs.cluster_run import connect, missing_resources
    from jobs.federate.ray_sites import RaySites

    connect()
    if (missing := missing_resources(request)) is not None:
        print(f"waiting for the cluster: {missing}", flush=True)
    sites = RaySites(request)
    # The server has no accelerator: it averages, and splits updates.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from jobs.federate.server import Federation

    try:
        Federation(request, runs, sites, split, attempt=attempt).run()
    finally:
        sites.close()


if __name__ == "__main__":
    sys.exit(main())
