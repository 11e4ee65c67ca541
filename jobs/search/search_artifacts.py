"""The files of a search in its run folder: spec, results, report, and best spec."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError, NotInStore
from jobs.inspect.recorded_spec import adopt_settled
from jobs.search.report.pareto import find_best, find_front
from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.spec.kinds import KINDS
from jobs.spec.load import dump_spec, make_trial_spec, parse_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import SearchSpec
from jobs.store.runs.run_store import SPEC, RunStore

SEARCH_FILE = KINDS["search"].spec_file
"""The search with all defaults written out; it can be resumed with the same search only."""
NEXT_SPEC_FILE, RESULTS_FILE, REPORT_FILE = "next.yaml", "results.parquet", "report.html"


def pin_search(search: SearchSpec, runs: RunStore, *, resumed: bool) -> None:
    """Write the search on its first attempt. Raise InputError if a resumed one differs."""
    text = dump_spec(search)
    try:
        pinned = runs.read_text(SEARCH_FILE)
    except NotInStore:
        if resumed:
            problem = f"there is no search {runs.run_id} in {runs.store.url('')}"
            raise InputError([Fault("--resume", problem, "Remove --resume.")]) from None
        runs.write_text(SEARCH_FILE, text)
        return
    if pinned != text:
        problem = f"the spec differs from that of {runs.run_id}"
        raise InputError(
            [Fault("--resume", problem, "Use the spec of that search, or start a new one.")]
        )


def write_results(search: SearchSpec, runs: RunStore, trial_log: TrialLog) -> None:
    """Write the files from the current records, also of a search that failed."""
    # Imported here because plotly and pyarrow are heavy and needed at the end only.
    from jobs.search.report.html_report import render_report
    from jobs.search.report.results import write_parquet

    records, section = trial_log.records, search.section
    if not records:
        return
    best_trial = find_best(records, section.direction)
    if best_trial is not None:
        runs.write_text(NEXT_SPEC_FILE, format_next_spec(search, runs, best_trial))
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
    """Return the outcome of a search as JSON values."""
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


def format_next_spec(search: SearchSpec, runs: RunStore, trial: TrialRecord) -> str:
    """Return the full spec of a trial as YAML for `slora train`, with the rates that it used."""
    spec = make_paths_absolute(make_trial_spec(search, dict(trial.config)))
    try:
        recorded = parse_spec(RunStore(runs.store, trial.run).read_text(SPEC), SPEC)
        spec = adopt_settled(spec, recorded)
    except NotInStore:
        pass  # The files of its run are gone: what it left open stays open.
    return f"# Trial {trial.number} of the search\n{dump_spec(spec)}"
