"""`python -m jobs.retrain --spec SPEC`: learns what is new, and promotes it if its gate holds."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence

from rich.console import Console

from jobs.at_hand import spec_at_hand
from jobs.ended import ended, failure_kept
from jobs.lease import Lease
from jobs.report import summary
from jobs.retrain.door import Retrain, load_retrain
from jobs.retrain.papers import keep_asked
from jobs.retrain.run import Retraining
from jobs.run_arguments import run_parser
from jobs.store.objects import open_store
from jobs.store.runs import RunStore, new_run_id
from jobs.telling import told


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done (promoted, kept, or nothing new), 1 it failed, 2 the input is wrong,
    3 Ray is not reachable."""
    asked = run_parser("jobs.retrain", main.__doc__).parse_args(arguments)

    def work() -> None:
        retrain = load_retrain(spec_at_hand(asked.spec), asked.set)
        now = datetime.datetime.now(datetime.UTC)
        _run(retrain, asked.run or new_run_id(retrain.spec.name, now), asked.attempt)

    return ended(work)


def _run(asked: Retrain, run_id: str, attempt: int) -> None:
    runs = RunStore(open_store(asked.spec.store), run_id)
    print(f"run {run_id}", flush=True)
    keep_asked(asked, runs)
    with Lease(runs, attempt), told(runs), failure_kept(runs):
        Retraining(asked, runs, attempt).run()
    Console(width=80).print(summary(runs))


if __name__ == "__main__":
    sys.exit(main())
