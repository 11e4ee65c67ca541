"""A search's papers in the store: what it looks for, its trials, the best of them."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

from jobs.errors import Fault, InputError
from jobs.search.door import validate_search
from jobs.search.leave import SEARCH
from jobs.search.pareto import best
from jobs.search.rows import Row
from jobs.search.rows import Status as RowStatus
from jobs.spec_file import MOST_BYTES, NOT_YAML
from jobs.store.objects import ObjectStore
from orchestrator.registry.adapters import SearchFound
from orchestrator.registry.hostile import MENDED, is_run, mapping
from orchestrator.registry.values import told

__all__ = ["SEARCH", "asked_of", "found_by", "trials_of"]


def asked_of(store: ObjectStore, key: str, faults: list[Fault]) -> tuple[str, str] | None:
    """The search's metric and direction."""
    try:
        section = validate_search(mapping(store.read(key, 0, MOST_BYTES + 1))).section
        return section.metric, section.direction
    except InputError as wrong:
        first = wrong.faults[0]
        faults.append(Fault(key, f"{first.key}: {first.problem}"[:300], MENDED))
    except (*NOT_YAML, RecursionError) as wrong:
        faults.append(Fault(key, f"no search: {str(wrong)[:200]!a}", MENDED))
    return None


def trials_of(events: list[dict[str, Any]], key: str, faults: list[Fault]) -> list[Row]:
    """A search's trials, each as it was last told."""
    rows: dict[int, Row] = {}
    for event in events:
        if event.get("event") != "trial":
            continue
        if (row := _row(event.get("row"))) is None:
            faults.append(Fault(key, "a trial in it can't be read", "The others were."))
        else:
            rows[row.number] = row
    return [rows[number] for number in sorted(rows)]


def _row(told_row: Any) -> Row | None:
    try:
        row: Any = Row.of(told_row)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    # Any, because a dataclass takes whatever it is given.
    sound = (
        isinstance(row.number, int)
        and isinstance(row.metric, float | None)
        and isinstance(row.run, str)
        and (row.run == "" or is_run(row.run))
        and row.status in get_args(RowStatus)
    )
    return row if sound else None


def found_by(
    run: str, asked: tuple[str, str], rows: list[Row], events: list[dict[str, Any]]
) -> SearchFound:
    """What it has found by now."""
    metric, direction = asked
    top = best(rows, "max" if direction == "max" else "min")
    published = [e.get("adapter") for e in events if e.get("event") == "published"]
    return SearchFound(
        run=run,
        metric=metric,
        direction=direction,
        trials=dict(Counter(str(row.status) for row in rows)),
        best_run=top.run if top else None,
        best_metric=top.metric if top else None,
        adapter=told(str(published[-1])) if published else None,
    )
