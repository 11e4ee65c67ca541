"""What a search keeps in its folder: what was asked, results, report, the next spec to run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError, NotFound
from jobs.preflight import absolute
from jobs.search.diary import Diary
from jobs.search.door import Search
from jobs.search.pareto import best, front
from jobs.spec_file import dump_spec
from jobs.store.runs import RunStore

SEARCH = "search.yaml"
"""What was asked, whole; a search that goes on must be asked the same."""
NEXT, RESULTS, REPORT = "next.yaml", "results.parquet", "report.html"


def keep_asked(search: Search, runs: RunStore, *, resumed: bool) -> None:
    """Keeps what was asked; a search that goes on must be the same. Raises InputError."""
    text = search.text()
    try:
        before = runs.read_text(SEARCH)
    except NotFound:
        if resumed:
            problem = f"there is no search {runs.run_id} in {runs.store.url('')}"
            raise InputError([Fault("--resume", problem, "Start it without.")]) from None
        runs.write_text(SEARCH, text)
        return
    if before != text:
        problem = f"{runs.run_id} was another search: its spec differs"
        raise InputError([Fault("--resume", problem, "Use its spec, or start a new search.")])


def leave(search: Search, runs: RunStore, diary: Diary) -> None:
    """Writes them from the rows as they are; a search that failed has them too."""
    # Here, because they load pandas' and plotly's weight, which a search needs at its end only.
    from jobs.search.report import html
    from jobs.search.results import write_parquet

    rows, section = diary.rows, search.section
    if not rows:
        return
    found = best(rows, section.direction)
    if found is not None:
        runs.write_text(NEXT, next_spec(search, found.number, dict(found.config)))
    with tempfile.TemporaryDirectory(prefix="slora-results-") as made:
        table = Path(made) / RESULTS
        write_parquet(table, rows)
        runs.store.put(runs.key(RESULTS), table.read_bytes())
    budget = {name: limit for name, limit in section.budget.model_dump().items() if limit}
    page = html(
        rows, name=runs.run_id, metric=section.metric, mode=section.direction, budget=budget
    )
    runs.write_text(REPORT, page)


def outcome(search: Search, runs: RunStore) -> dict[str, Any]:
    """What a search came to, for programs."""
    rows = Diary(runs).rows
    found = best(rows, search.section.direction)
    events, _ = runs.events.tail(0)
    published = [event["adapter"] for event in events if event["event"] == "published"]
    return {
        "search": runs.run_id,
        "metric": search.section.metric,
        "mode": search.section.direction,
        "best": found.plain() if found else None,
        "adapter": published[-1] if published else None,
        "front": front(rows, search.section.direction),
        "trials": [row.plain() for row in rows],
        "files": {name: runs.store.url(runs.key(name)) for name in (NEXT, RESULTS, REPORT)},
    }


def next_spec(search: Search, number: int, config: dict[str, object]) -> str:
    """The best trial's spec, whole, as YAML that `slora train` takes."""
    found = search.federated(config)
    if found is not None:
        text = replace(found, spec=absolute(found.spec)).text()
    else:
        text = dump_spec(absolute(search.trial(config)))
    return f"# trial {number} of its search\n{text}"
