"""Tables of 80 columns, the same as markdown, and charts, from the file of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.paper.svg import Line as ChartLine
from tests.benchmarks.paper.svg import line_chart
from tests.benchmarks.quality.corpora import Corpus
from tests.benchmarks.quality.results_file import Results
from tests.benchmarks.quality.schedule import find_lines
from tests.benchmarks.quality.summary import (
    MethodSummary,
    average_curves,
    list_machines,
    summarize_corpus,
)
from tests.benchmarks.quality.variants import BY_NAME, VARIANTS, Variant

COMMAND = "python -m tests.benchmarks.quality"
WIDTH = 80
Column = tuple[str, Callable[[MethodSummary], str]]
COSTS = {"tokens": "tokens", "bytes": "MB exchanged by a worker"}
FAMILIES = {
    "LoRA, dense": ("lora r4", "lora r8", "lora r32"),
    "sparse factors": ("factors r16", "factors r32", "factors r64", "factors r128"),
    "SLoRA, outputs": ("slora r4 outputs", "slora r32 outputs", "slora r64 outputs",
                       "slora r128 outputs"),
}  # fmt: skip
"""Methods that differ by the rank: one line of the chart against trained numbers."""


def _format_rates(row: MethodSummary) -> str:
    return " ".join(f"{rate:.0e}".replace("e-0", "e-") for rate in row.rates.values())


def _format_seeds(row: MethodSummary) -> str:
    return f"{row.seeds}+{row.diverged}" if row.diverged else str(row.seeds)


def _format_count(count: float) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"


def _format_handoff(row: MethodSummary) -> str:
    return "" if row.handoff_loss is None else f"{row.handoff_loss:.1%}"


def _format_tokens(row: MethodSummary) -> str:
    return "" if row.tokens_to_target is None else _format_count(row.tokens_to_target)


QUALITY_COLUMNS: tuple[Column, ...] = (
    ("method", lambda row: row.method),
    ("rates", _format_rates),
    ("seeds", _format_seeds),
    ("test", lambda row: f"{row.mean:.3f}"),
    ("lowest..highest", lambda row: f"{row.low:.3f}..{row.high:.3f}"),
    ("late", lambda row: f"{row.late_gain:+.3f}"),
)
COST_COLUMNS: tuple[Column, ...] = (
    ("method", lambda row: row.method),
    ("trained", lambda row: _format_count(row.trained)),
    ("share", lambda row: f"{row.trained / row.parameters:.2%}"),
    ("B/step", lambda row: _format_count(row.bytes_a_step)),
    ("MB", lambda row: f"{row.megabytes:,.0f}"),
    ("tokens", _format_tokens),
    ("seconds", lambda row: f"{row.seconds:.0f}"),
    ("lost", _format_handoff),
)
LEGEND = (
    "rates: of the sparse stage, the adapter and the head, as far as a method has them; seeds: +n "
    "diverged; late: the gain on the validation rows over the last fifth of the steps; MB: float32 "
    "gradients that a worker exchanges in all; tokens: until the mean of the last validation "
    "figures of lora r4 was met, if every seed met it; seconds of the steps; lost: the share of "
    "the sparse stage's gain in loss that the hand-off lost."
)


def format_report(
    corpora: Sequence[Corpus], variants: Sequence[Variant], results: Results, *, markdown: bool
) -> str:
    """Return the tables of the data sets that have results."""
    blocks = []
    for corpus in corpora:
        rows = summarize_corpus(corpus, variants, results)
        if rows:
            blocks.append(_format_corpus(corpus, rows, results, markdown=markdown))
    if not blocks:
        return "no results yet"
    legend = LEGEND if markdown else "\n".join(_wrap(LEGEND))
    return "\n\n".join([*blocks, legend])


def _format_corpus(
    corpus: Corpus, rows: Sequence[MethodSummary], results: Results, *, markdown: bool
) -> str:
    facts = list_machines(results, corpus)
    dtypes = " and ".join(sorted({row.dtype for row in rows}))
    title = f"{corpus.name}: test {corpus.metric}"
    about = (
        f"`{COMMAND} run --data {corpus.name}`, shown by `{COMMAND} report`: {facts['runs']} "
        f"trainings of {corpus.steps} steps of {corpus.batch_size} x {corpus.max_length} tokens in "
        f"{dtypes}. Machine: {'; '.join(facts['machines'])}. Code: {', '.join(facts['code'])}. "
        f"{', '.join(facts['libraries'])}."
    )
    make_table = _make_markdown if markdown else _make_text
    tables = [make_table(columns, rows) for columns in (QUALITY_COLUMNS, COST_COLUMNS)]
    if markdown:
        return "\n\n".join([f"**{title}.** {about}", *tables])
    return "\n\n".join([title, "\n".join(_wrap(about)), *tables])


def _make_text(columns: Sequence[Column], rows: Sequence[MethodSummary]) -> str:
    cells = [[header for header, _ in columns], *([show(row) for _, show in columns]
                                                  for row in rows)]  # fmt: skip
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    lines = []
    for line in cells:
        padded = [line[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _make_markdown(columns: Sequence[Column], rows: Sequence[MethodSummary]) -> str:
    lines = [" | ".join(header for header, _ in columns), "|".join("---" for _ in columns)]
    lines += [" | ".join(show(row) for _, show in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _wrap(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def write_charts(corpora: Sequence[Corpus], results: Results, folder: Path) -> list[Path]:
    """Write quality against tokens, bytes and trained numbers, for each data set with results."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for corpus in corpora:
        charts = {cost: _draw_curves(corpus, results, cost) for cost in COSTS}
        charts["trained"] = _draw_counts(corpus, results)
        for name, chart in charts.items():
            if chart is not None:
                path = folder / f"quality-{corpus.name}-{name}.svg"
                path.write_text(chart, encoding="utf-8")
                paths.append(path)
    return paths


def _draw_curves(corpus: Corpus, results: Results, cost: str) -> str | None:
    """Draw the methods that the claims are about; more lines than that can't be told apart."""
    lines: dict[str, ChartLine] = {}
    for variant in VARIANTS:
        found = [r for r in find_lines(corpus, variant, results) if "curve" in r]
        if variant.tier == 0 and not variant.at_start and found:
            lines[variant.name] = average_curves(found, cost)
    if not any(x > 0 for line in lines.values() for x, _ in line):
        return None
    title = f"{corpus.name}: validation {corpus.metric} against {COSTS[cost]}"
    return line_chart(lines, title=title, x=COSTS[cost], y=f"validation {corpus.metric}")


def _draw_counts(corpus: Corpus, results: Results) -> str | None:
    rows = {row.method: row for row in summarize_corpus(corpus, VARIANTS, results)}
    grouped = {name for family in FAMILIES.values() for name in family}
    families = {**FAMILIES, **{name: (name,) for name in rows
                               if name not in grouped and BY_NAME[name].tier == 0
                               and not BY_NAME[name].at_start}}  # fmt: skip
    lines: dict[str, ChartLine] = {
        family: [(float(rows[name].trained), rows[name].mean) for name in names if name in rows]
        for family, names in families.items()
    }
    lines = {family: line for family, line in lines.items() if line}
    if not lines:
        return None
    title = f"{corpus.name}: test {corpus.metric} against trained numbers"
    return line_chart(lines, title=title, x="trained numbers", y=f"test {corpus.metric}")
