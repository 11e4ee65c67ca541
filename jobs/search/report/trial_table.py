"""The report's words: the search's figures at the top, and the table of every trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from jobs.search.report.format import (
    format_bytes,
    format_metric,
    format_seconds,
    format_share,
    format_value,
    list_keys,
    make_short_names,
)
from jobs.search.report.pareto import Mode, find_best, find_front
from jobs.search.trial_record import FINAL_STATUSES, TrialRecord

STATUSES = ("done", "stopped", "failed", "rejected", "running", "waiting")
GOAL = {"min": "the smaller the better", "max": "the larger the better"}


def headline(
    rows: Sequence[TrialRecord], metric: str, mode: Mode, *, budget: Mapping[str, float]
) -> str:
    """The best trial, what was spent, and how the trials ended, as a list of terms."""
    pairs = [
        ("Best trial", _best(rows, metric, mode)),
        ("Judged by", f"{escape(metric)}, {GOAL[mode]}"),
        ("Trials", _counts(rows)),
        ("Spent", _spent(rows, budget)),
    ]
    terms = "".join(f"<div><dt>{term}</dt><dd>{told}</dd></div>" for term, told in pairs)
    return f"<dl>{terms}</dl>"


def trials(rows: Sequence[TrialRecord], metric: str, mode: Mode) -> str:
    """Every trial with all its figures; under it why it ended, where there is a reason."""
    keys = list_keys(rows)
    names = make_short_names(keys)
    top, chosen = find_best(rows, mode), set(find_front(rows, mode))
    heads = [
        _head("trial"), _head("status"), _head(metric, number=True),
        *(_head(names[key], title=key) for key in keys),
        _head("trainable", number=True), _head("wire", title="bytes out of a node", number=True),
        _head("adapter", number=True), _head("memory", title="peak of a worker", number=True),
        _head("steps", number=True), _head("tokens", number=True), _head("time", number=True),
    ]  # fmt: skip
    bodies = [
        _body(row, keys, place=_place(row, top, chosen), columns=len(heads))
        for row in sorted(rows, key=lambda row: row.number)
    ]
    return (
        '<div class="wide" tabindex="0" role="region" aria-labelledby="all-trials"><table>'
        "<caption>Sizes are the plan's; time includes the start of a trial.</caption>"
        f"<thead><tr>{''.join(heads)}</tr></thead>{''.join(bodies)}</table></div>"
    )


def _best(rows: Sequence[TrialRecord], metric: str, mode: Mode) -> str:
    top = find_best(rows, mode)
    if top is None:
        return "none: no trial came to a result"
    names = make_short_names(list(top.config))
    values = ", ".join(f"{names[key]} {format_value(value)}" for key, value in top.config.items())
    return (
        f'<a href="#trial-{top.number}">trial {top.number}</a>,'
        f" <strong>{escape(metric)} {format_metric(top.metric)}</strong>"
        f"<small>{escape(values)}</small>"
    )


def _counts(rows: Sequence[TrialRecord]) -> str:
    counts: Counter[str] = Counter(row.status for row in rows)
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    return f"{len(rows)}<small>{told}</small>"


def _spent(rows: Sequence[TrialRecord], budget: Mapping[str, float]) -> str:
    ended = sum(row.status in FINAL_STATUSES for row in rows)
    tokens, seconds = sum(row.tokens for row in rows), sum(row.seconds for row in rows)
    parts = [
        f"{ended:,}{_limit(budget.get('trials'))} trials",
        f"{tokens:,}{_limit(budget.get('tokens'))} tokens",
        f"{sum(row.steps for row in rows):,} steps",
    ]
    others = [
        f"{escape(name)}: at most {limit:,.6g}"
        for name, limit in budget.items()
        if name not in ("trials", "tokens")
    ]
    rest = "; ".join([", ".join(parts), *others])
    return f"{format_seconds(seconds)} of trials<small>{rest}</small>"


def _limit(limit: float | None) -> str:
    return "" if limit is None else f" of {limit:,.15g}"


def _place(row: TrialRecord, top: TrialRecord | None, chosen: set[int]) -> str:
    if top is not None and row.number == top.number:
        return "best"
    return "front" if row.number in chosen else ""


def _body(row: TrialRecord, keys: Sequence[str], *, place: str, columns: int) -> str:
    mark = f' <span class="place {place}">{place}</span>' if place else ""
    values = [format_value(row.config[key]) if key in row.config else "–" for key in keys]
    figures = [
        format_share(row.trainable_share), format_bytes(row.node_bytes), format_bytes(row.adapter_bytes),
        format_bytes(row.memory_bytes), f"{row.steps:,}", f"{row.tokens:,}",
        format_seconds(row.seconds),
    ]  # fmt: skip
    cells = [
        f'<th scope="row">{row.number}{mark}</th>',
        f'<td><span class="status {row.status}">{row.status}</span></td>',
        _number(format_metric(row.metric)),
        *(f"<td>{escape(value)}</td>" for value in values),
        *(_number(figure) for figure in figures),
    ]
    return (
        f'<tbody id="trial-{row.number}" class="{place}"><tr>{"".join(cells)}</tr>'
        f"{_why(row, columns)}</tbody>"
    )


def _why(row: TrialRecord, columns: int) -> str:
    told = [escape(row.reason)] if row.reason else []
    if row.shared:
        told.append("taken over: " + escape(", ".join(row.shared)))
    if not told:
        return ""
    return f'<tr class="why"><td></td><td colspan="{columns - 1}">{"; ".join(told)}</td></tr>'


def _head(name: str, *, title: str = "", number: bool = False) -> str:
    kind = ' class="number"' if number else ""
    more = f' title="{escape(title)}"' if title else ""
    return f'<th scope="col"{kind}{more}>{escape(name)}</th>'


def _number(text: str) -> str:
    return f'<td class="number">{text}</td>'
