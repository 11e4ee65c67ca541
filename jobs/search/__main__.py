"""`python -m jobs.search --spec SPEC`: searches on Ray, commits the best, tells what it found."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence

from jobs.at_hand import spec_at_hand
from jobs.ended import ended, failure_kept
from jobs.lease import Lease
from jobs.preflight import Checked, check
from jobs.run_arguments import run_parser
from jobs.search.diary import Diary
from jobs.search.door import Search, load_search
from jobs.search.leave import keep_asked, leave
from jobs.search.pareto import best
from jobs.search.planned import impossible, planned
from jobs.search.rows import Row
from jobs.search.space import drawn_ahead
from jobs.search.table import line_of
from jobs.spec_file import dump_spec
from jobs.store.objects import open_store
from jobs.store.runs import SPEC, RunStore, new_run_id


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 no trial succeeded, 2 the input is wrong, 3 Ray is not reachable."""
    parser = run_parser("jobs.search", main.__doc__)
    parser.add_argument("--resume", metavar="RUN", help="go on with a search that was interrupted")
    asked = parser.parse_args(arguments)
    return ended(lambda: _work(asked))


def _work(asked: argparse.Namespace) -> None:
    search = load_search(spec_at_hand(asked.spec), asked.set)
    checked = check(search.spec)
    _possible(search, checked)
    now = datetime.datetime.now(datetime.UTC)
    run_id = asked.resume or asked.run or new_run_id(f"{search.spec.name}-search"[:40], now)
    runs = RunStore(open_store(checked.spec.store), run_id)
    keep_asked(search, runs, resumed=asked.resume is not None)
    runs.write_text(SPEC, dump_spec(checked.spec))
    diary = Diary(runs)
    print(f"search {run_id}", flush=True)
    with Lease(runs, asked.attempt):
        _searched(search, checked, runs, diary, asked.attempt)


def _searched(search: Search, checked: Checked, runs: RunStore, diary: Diary, attempt: int) -> None:
    # Ray only after the check: bad input answers in a second, and starts nothing.
    from jobs.cluster_run import connect
    from jobs.search.driver import publish_best, run_trials
    from jobs.search.shown import shown

    def say(row: Row) -> None:
        print(line_of(row, search.section.metric), flush=True)

    connect()
    try:
        with failure_kept(runs):
            run_trials(search, checked, runs, diary, say)
            found = best(diary.rows, search.section.direction)
            adapter = None
            if found is not None:
                adapter = publish_best(search, checked, runs, found, attempt=attempt)
    finally:
        leave(search, runs, diary)
    if adapter is not None:
        told = {"event": "published", "time": time.time(), "adapter": adapter}
        runs.events.append(told)
    shown(search, runs, diary, adapter)


def _possible(search: Search, checked: Checked) -> None:
    """Raises InputError where every proposal breaks a constraint, as far as that can be known."""
    ahead = drawn_ahead(search.section)
    if ahead is None:
        return
    reasons = []
    for number, config in enumerate(ahead):
        found = planned(search, checked, Row(number, config))
        if not isinstance(found, Row):
            return
        reasons.append(found.reason)
    raise impossible(reasons)


if __name__ == "__main__":
    sys.exit(main())
