"""The report of a search: one HTML file with Optuna's figures and a table of every trial.

It loads nothing. A policy in the page names its two scripts by digest, so that a script that came
with the text of a trial could not run, even if the text were not escaped.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape

from plotly.offline import get_plotlyjs

from jobs.search.report.figures import ReportFigure, build_figures
from jobs.search.report.format import format_metric, format_seconds
from jobs.search.report.pareto import Mode, find_best
from jobs.search.report.trial_table import render_trial_table
from jobs.search.trial_record import TrialRecord

DRAW_SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
for (const [id, figure] of Object.entries(figures)) {
  Plotly.newPlot(id, figure.data, figure.layout, {displayModeBar: false, responsive: true});
}
"""
STYLE = """
body { margin: 0 auto; padding: 24px; max-width: 1200px; font: 15px/1.5 system-ui, sans-serif; }
h1, dd, td:last-child { overflow-wrap: anywhere; }
dt { float: left; clear: left; width: 9em; color: #59636e; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 4px 8px; text-align: left; white-space: nowrap; }
td { border-top: 1px solid #d1d9e0; }
td:last-child { white-space: normal; min-width: 20em; }
"""


def render_report(
    records: Sequence[TrialRecord],
    *,
    name: str,
    metric: str,
    mode: Mode,
    budget: Mapping[str, float] | None = None,
) -> str:
    """Return the text of the file. `budget`: the search's limits by name (`trials`, `tokens`)."""
    records = sorted(records, key=lambda record: record.number)
    figures, library = build_figures(records, metric, mode), get_plotlyjs()
    policy = _make_policy(library, DRAW_SCRIPT)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>Search {escape(name)}</title><style>{STYLE}</style></head>",
        f"<body><main><h1>Search {escape(name)}</h1>",
        _render_summary(records, metric, mode, budget or {}),
        *map(_render_figure, figures),
        f"<h2>All trials</h2>{render_trial_table(records, metric, mode)}",
        f'</main><script type="application/json" id="figures">{_dump_figures(figures)}</script>',
        f"<script>{library}</script><script>{DRAW_SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _make_policy(*scripts: str) -> str:
    digests = [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    )


def _dump_figures(figures: Sequence[ReportFigure]) -> str:
    """Return the figures by id. Plotly escapes what could end the element that they stand in."""
    parts = [f'"{part.id}": {part.figure.to_json()}' for part in figures if part.figure]
    return "{" + ", ".join(parts) + "}"


def _render_figure(part: ReportFigure) -> str:
    title = f"<h2>{escape(part.title)}</h2><p>{escape(part.caption)}</p>"
    return f"<section>{title}{f'<div id={part.id!r}></div>' if part.figure else ''}</section>"


def _render_summary(
    records: Sequence[TrialRecord], metric: str, mode: Mode, budget: Mapping[str, float]
) -> str:
    best_trial = find_best(records, mode)
    statuses = Counter(record.status for record in records)
    limits = ", ".join(f"{name} {limit:,.15g}" for name, limit in budget.items())
    terms = {
        "Best trial": f"trial {best_trial.number}, {metric} {format_metric(best_trial.metric)}"
        if best_trial
        else "none: no trial has a result",
        "Metric": f"{metric}, the {'smaller' if mode == 'min' else 'larger'} the better",
        "Trials": ", ".join(f"{count} {status}" for status, count in statuses.items()),
        "Used": f"{sum(record.tokens for record in records):,} tokens,"
        f" {sum(record.steps for record in records):,} steps,"
        f" {format_seconds(sum(record.seconds for record in records))} of trials",
        "Budget": limits or "none",
    }
    items = "".join(f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in terms.items())
    return f"<dl>{items}</dl>"
