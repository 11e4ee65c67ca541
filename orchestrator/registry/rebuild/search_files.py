"""A search's papers in the store: what it looks for, its trials, the best of them."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

from jobs.errors import Fault, InputError
from jobs.search.report.pareto import find_best
from jobs.search.search_artifacts import SEARCH_FILE
from jobs.search.trial_record import TrialRecord
from jobs.search.trial_record import TrialStatus as RowStatus
from jobs.spec.kinds import require_kind
from jobs.spec.load import validate_spec
from jobs.spec.schema import SearchSpec
from jobs.spec.yaml_text import MAX_BYTES, YAML_ERRORS
from jobs.store.base import ObjectStore
from orchestrator.registry.adapters import SearchSummary
from orchestrator.registry.rebuild.untrusted import FIX_HINT, is_run_id, parse_mapping
from orchestrator.registry.values import clean_text

__all__ = ["SEARCH_FILE", "make_search_summary", "read_search_goal", "read_trials"]


def read_search_goal(store: ObjectStore, key: str, faults: list[Fault]) -> tuple[str, str] | None:
    """The search's metric and direction."""
    try:
        spec = validate_spec(parse_mapping(store.read(key, 0, MAX_BYTES + 1)))
        section = require_kind(spec, SearchSpec).section
        return section.metric, section.direction
    except InputError as error:
        first = error.faults[0]
        faults.append(Fault(key, f"{first.key}: {first.problem}"[:300], FIX_HINT))
    except (*YAML_ERRORS, RecursionError) as error:
        faults.append(Fault(key, f"no search: {str(error)[:200]!a}", FIX_HINT))
    return None


def read_trials(events: list[dict[str, Any]], key: str, faults: list[Fault]) -> list[TrialRecord]:
    """A search's trials, each as it was last told."""
    trials: dict[int, TrialRecord] = {}
    for event in events:
        if event.get("event") != "trial":
            continue
        if (trial := _parse_trial(event.get("row"))) is None:
            faults.append(Fault(key, "a trial in it can't be read", "The others were."))
        else:
            trials[trial.number] = trial
    return [trials[number] for number in sorted(trials)]


def _parse_trial(raw_row: Any) -> TrialRecord | None:
    try:
        trial: Any = TrialRecord.from_dict(raw_row)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    # Any, because a dataclass takes whatever it is given.
    is_valid = (
        isinstance(trial.number, int)
        and isinstance(trial.metric, float | None)
        and isinstance(trial.run, str)
        and (trial.run == "" or is_run_id(trial.run))
        and trial.status in get_args(RowStatus)
    )
    return trial if is_valid else None


def make_search_summary(
    run: str, goal: tuple[str, str], trials: list[TrialRecord], events: list[dict[str, Any]]
) -> SearchSummary:
    """What it has found by now."""
    metric, direction = goal
    best_trial = find_best(trials, "max" if direction == "max" else "min")
    published = [event.get("adapter") for event in events if event.get("event") == "published"]
    return SearchSummary(
        run=run,
        metric=metric,
        direction=direction,
        trials=dict(Counter(str(trial.status) for trial in trials)),
        best_run=best_trial.run if best_trial else None,
        best_metric=best_trial.metric if best_trial else None,
        adapter=clean_text(str(published[-1])) if published else None,
    )
