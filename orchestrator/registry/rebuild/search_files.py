"""Read the trials of a search from its journal, and summarise them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from jobs.errors import Fault
from jobs.search.report.pareto import find_best
from jobs.search.trial_record import TrialRecord, TrialStatus
from jobs.spec.sections.search import SearchSection
from orchestrator.registry.adapters import SearchSummary
from orchestrator.registry.rebuild.untrusted import is_run_id
from orchestrator.registry.values import clean_text

Events = Sequence[dict[str, Any]]


def read_trials(events: Events, key: str, faults: list[Fault]) -> list[TrialRecord]:
    """Return the newest record of each trial; append a fault for each that is not valid."""
    trials: dict[int, TrialRecord] = {}
    for event in events:
        if event.get("event") != "trial":
            continue
        if (trial := _parse_trial(event.get("record"))) is None:
            faults.append(Fault(key, "not a valid trial", "The other trials were read."))
        else:
            trials[trial.number] = trial
    return [trials[number] for number in sorted(trials)]


def make_search_summary(
    run: str, section: SearchSection, trials: list[TrialRecord], events: Events
) -> SearchSummary:
    """Summarise the goal and the trials of a search."""
    best_trial = find_best(trials, section.direction)
    published = [event.get("adapter") for event in events if event.get("event") == "published"]
    return SearchSummary(
        run=run,
        metric=section.metric,
        direction=section.direction,
        trials=dict(Counter(str(trial.status) for trial in trials)),
        best_run=best_trial.run if best_trial else None,
        best_metric=best_trial.metric if best_trial else None,
        adapter=clean_text(str(published[-1])) if published else None,
    )


def _parse_trial(raw_row: Any) -> TrialRecord | None:
    try:
        trial: Any = TrialRecord.from_dict(raw_row)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    # Any, because a dataclass accepts values of any type.
    is_valid = (
        isinstance(trial.number, int)
        and isinstance(trial.metric, float | None)
        and isinstance(trial.run, str)
        and (trial.run == "" or is_run_id(trial.run))
        and trial.status in get_args(TrialStatus)
    )
    return trial if is_valid else None
