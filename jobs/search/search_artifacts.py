"""What a search keeps in its folder: what was asked, results, report, the next spec to run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError, NotInStore
from jobs.search.report.pareto import find_best, find_front
from jobs.search.trial_log import TrialLog
from jobs.spec.kinds import KINDS
from jobs.spec.load import dump_spec, make_trial_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import SearchSpec
from jobs.store.runs.run_store import RunStore

SEARCH_FILE = KINDS["search"].spec_file
"""What was asked, whole; a search that goes on must be asked the same."""
NEXT_SPEC_FILE, RESULTS_FILE, REPORT_FILE = "next.yaml", "results.parquet", "report.html"


def pin_search(search: SearchSpec, runs: RunStore, *, resumed: bool) -> None:
    """Keeps what was asked; a search that goes on must be the same. Raises InputError."""
    text = dump_spec(search)
    try:
        pinned = runs.read_text(SEARCH_FILE)
    except NotInStore:
        if resumed:
            problem = f"there is no search {runs.run_id} in {runs.store.url('')}"
            raise InputError([Fault("--resume", problem, "Start it without.")]) from None
        runs.write_text(SEARCH_FILE, text)
        return
    if pinned != text:
        problem = f"{runs.run_id} was another search: its spec differs"
        raise InputError([Fault("--resume", problem, "Use its spec, or start a new search.")])


def write_results(search: SearchSpec, runs: RunStore, trial_log: TrialLog) -> None:
    """Writes them from the rows as they are; a search that failed has them too."""
    # Here, because they load pandas' and plotly's weight, which a search needs at its end only.
    from jobs.search.report.html_report import render_report
    from jobs.search.report.results import write_parquet

    records, section = trial_log.records, search.section
    if not records:
        return
    best_trial = find_best(records, section.direction)
    if best_trial is not None:
        runs.write_text(
            NEXT_SPEC_FILE, format_next_spec(search, best_trial.number, dict(best_trial.config))
        )
    with tempfile.TemporaryDirectory(prefix="slora-results-") as folder:
        path = Path(folder) / RESULTS_FILE
        write_parquet(path, records)
        runs.store.put(runs.key(RESULTS_FILE), path.read_bytes())
    budget = {name: limit for name, limit in section.budget.model_dump().items() if limit}
    page = render_report(
        records, name=runs.run_id, metric=section.metric, mode=section.direction, budget=budget
    )
    runs.write_text(REPORT_FILE, page)


def build_summary(search: SearchSpec, runs: RunStore) -> dict[str, Any]:
    """What a search came to, for programs."""
    records = TrialLog(runs).records
    best_trial = find_best(records, search.section.direction)
    events, _ = runs.events.tail(0)
    published = [event["adapter"] for event in events if event["event"] == "published"]
    return {
        "search": runs.run_id,
        "metric": search.section.metric,
        "mode": search.section.direction,
        "best": best_trial.to_dict() if best_trial else None,
        "adapter": published[-1] if published else None,
        "front": find_front(records, search.section.direction),
        "trials": [record.to_dict() for record in records],
        "files": {
            name: runs.store.url(runs.key(name))
            for name in (NEXT_SPEC_FILE, RESULTS_FILE, REPORT_FILE)
        },
    }


def format_next_spec(search: SearchSpec, number: int, config: dict[str, object]) -> str:
    """The best trial's spec, whole, as YAML that `slora train` takes."""
    text = dump_spec(make_paths_absolute(make_trial_spec(search, config)))
    return f"# trial {number} of its search\n{text}"
