"""`python -m jobs.federate --spec SPEC`: many clients, one adapter. Checks, trains, tells."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.at_hand import spec_at_hand
from jobs.ended import ended, failure_kept
from jobs.federate.check import check_federated
from jobs.federate.door import Federated, load_federated
from jobs.federate.papers import keep_asked
from jobs.lease import Lease
from jobs.report import summary
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
    # Ray and torch only after the check: bad input answers in a second, and starts nothing.
    from jobs.cluster_run import connect
    from jobs.federate.drive import federate

    runs = RunStore(open_store(asked.spec.store), run_id)
    keep_asked(asked, runs)
    runs.write_text(SPEC, dump_spec(asked.spec))
    runs.write_json(PLAN, checked.to_json())
    request = dataclasses.replace(checked.checked.request(run_id), federation=asked.section)
    print(f"run {run_id}", flush=True)
    with Lease(runs, attempt), told(runs), failure_kept(runs):
        connect()
        federate(request, runs, attempt=attempt)
    Console(width=80).print(summary(runs))


if __name__ == "__main__":
    sys.exit(main())
