"""The job: `python -m jobs.finetune --spec SPEC`. Checks, trains on Ray, says what came of it."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.at_hand import spec_at_hand
from jobs.ended import ended, failure_kept
from jobs.lease import Lease
from jobs.preflight import Checked, absolute, check
from jobs.report import summary
from jobs.run_arguments import run_parser
from jobs.spec_file import dump_spec, load_spec
from jobs.store.objects import open_store
from jobs.store.runs import LEDGER, PLAN, SPEC, RunStore, new_run_id
from jobs.telling import told


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 3 Ray is not reachable."""
    asked = run_parser("jobs.finetune", main.__doc__).parse_args(arguments)

    def work() -> None:
        spec = absolute(load_spec(spec_at_hand(asked.spec), asked.set))
        checked = check(spec)
        run_id = asked.run or new_run_id(spec.name, datetime.datetime.now(datetime.UTC))
        _run(checked, run_id, asked.attempt)

    return ended(work)


def _run(checked: Checked, run_id: str, attempt: int) -> None:
    # Ray and torch only after the check: bad input answers in a second, and starts nothing.
    from jobs.cluster_run import connect, missing_resources, train

    runs = RunStore(open_store(checked.spec.store), run_id)
    runs.write_text(SPEC, dump_spec(checked.spec))
    runs.write_json(PLAN, checked.plan.to_json())
    request = checked.request(run_id)
    print(f"run {run_id}", flush=True)
    with Lease(runs, attempt), told(runs), failure_kept(runs):
        connect()
        if (missing := missing_resources(request)) is not None:
            print(f"waiting for the cluster: {missing}", flush=True)
        train(request, runs, attempt=attempt)
    Console(width=80).print(summary(runs))
    assert runs.store.head(runs.key(LEDGER)) is not None


if __name__ == "__main__":
    sys.exit(main())
