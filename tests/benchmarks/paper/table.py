"""The results as rows: one a method and partition, over the seeds that are there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.paper.derive import (
    RATES_MBIT,
    Point,
    at_cost,
    curve,
    mean_curve,
    saved,
)
from tests.benchmarks.paper.order import Results, chosen, results
from tests.benchmarks.paper.plan import Part, Rival

BASELINE, LOW_RANK = "full", "lora"
HEADERS = ("method", "rates", "seeds", "test", "spread", "trained", "MB a client", "against lora",
           "hand-off", "kept", "saved 1", "saved 10", "saved 100")  # fmt: skip


def curves(
    part: Part, partition: str, rivals: Iterable[Rival], done: Results
) -> dict[str, list[Point]]:
    """Every method's mean curve over its seeds, on the test rows."""
    found = {
        rival.name: [curve(result) for result in results(part, partition, rival, done)]
        for rival in rivals
    }
    return {name: mean_curve(lines) for name, lines in found.items() if lines}


def rows(
    part: Part, partition: str, rivals: Iterable[Rival], done: Results
) -> list[dict[str, Any]]:
    """One row a method, in the rivals' order."""
    rivals = list(rivals)
    lines = curves(part, partition, rivals, done)
    return [
        _row(part, partition, rival, results(part, partition, rival, done), lines, done)
        for rival in rivals
        if rival.name in lines
    ]


def _row(
    part: Part,
    partition: str,
    rival: Rival,
    found: Sequence[Mapping[str, Any]],
    lines: Mapping[str, Sequence[Point]],
    done: Results,
) -> dict[str, Any]:
    mine, higher = lines[rival.name], part.metric == "accuracy"
    tests = [result["test"] for result in found]
    handed = [result["handoff"] for result in found if result["handoff"]]
    return {
        "part": part.name,
        "partition": partition,
        "method": rival.name,
        "rates": list(chosen(part, rival, done) or ()),
        "seeds": len(tests),
        "mean": statistics.fmean(tests),
        "low": min(tests),
        "high": max(tests),
        "trained": found[0]["trained"],
        "parameters": found[0]["parameters"],
        "client_mb": mine[-1].client_mb,
        "all_mb": mine[-1].all_mb,
        "compute_s": mine[-1].compute_s,
        "against_lora": _against(mine, lines.get(LOW_RANK)),
        "before_handoff": _mean(one.get("before") for one in handed),
        "after_handoff": _mean(one.get("after") for one in handed),
        "kept": _mean(one.get("kept") for one in found),
        "saved": {
            str(rate): saved(mine, lines[BASELINE], f"{rate} Mbit/s", higher=higher)
            for rate in RATES_MBIT
            if BASELINE in lines and rival.name != BASELINE
        },
    }


def _against(mine: Sequence[Point], lora: Sequence[Point] | None) -> dict[str, float] | None:
    """Both figures at the MB that the cheaper of the two spends in all."""
    if not lora:
        return None
    spent = min(mine[-1].client_mb, lora[-1].client_mb)
    here, there = at_cost(mine, "MB", spent), at_cost(lora, "MB", spent)
    if here is None or there is None:
        return None
    return {"mb": spent, "figure": here, "lora": there, "difference": here - there}


def goals(part: Part, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the experiment asks of every slora, as sentences with the figures."""
    by_name = {row["method"]: row for row in found}
    full = by_name.get(BASELINE)
    said = list[str]()
    for row in found:
        if not row["method"].startswith("slora") or full is None or part.metric != "accuracy":
            continue
        behind = 100 * (full["mean"] - row["mean"])
        side, goal = ("under", " (goal: at most 1)") if behind > 0 else ("above", "")
        parts = [f"{abs(behind):.1f} points {side} full fine-tuning{goal}"]
        if row["against_lora"]:
            above = 100 * row["against_lora"]["difference"]
            parts.append(f"{above:+.1f} against lora at equal bytes (goal: +3)")
        share = row["saved"].get("1", (None, None))[1]
        if share is not None:
            parts.append(f"{share:.1%} less time than full at 1 Mbit/s (goal: 90 %)")
        said.append(f"{row['method']}: {', '.join(parts)}.")
    return said


def show(
    title: str, part: Part, found: Sequence[Mapping[str, Any]], outside: Sequence[tuple[str, str]],
    *, markdown: bool,
) -> None:  # fmt: skip
    """Print the table: for a terminal, or as Markdown for docs/paper.md."""
    cells = [_cells(part, row) for row in found]
    cells += [(name, "", "", figure, *[""] * (len(HEADERS) - 4)) for name, figure in outside]
    if markdown:
        print(f"\n{title}\n\n| {' | '.join(HEADERS)} |\n|{'---|' * len(HEADERS)}")
        for row in cells:
            print(f"| {' | '.join(row)} |")
        return
    table = Table(title=title, title_justify="left")
    for header in HEADERS:
        table.add_column(header, justify="left" if header == "method" else "right")
    for row in cells:
        table.add_row(*row)
    Console(width=170).print(table)


def _cells(part: Part, row: Mapping[str, Any]) -> tuple[str, ...]:
    against, handed = row["against_lora"], ""
    if row["before_handoff"] is not None and row["after_handoff"] is not None:
        before, after = shown(part, row["before_handoff"]), shown(part, row["after_handoff"])
        handed = f"{before} -> {after}"
    difference = ""
    if against is not None and row["method"] != LOW_RANK:
        here, there = shown(part, against["figure"]), shown(part, against["lora"])
        difference = f"{here} / {there} at {against['mb']:,.0f} MB"
    return (
        row["method"],
        " / ".join(f"{rate:g}" for rate in row["rates"] if rate is not None),
        str(row["seeds"]),
        shown(part, row["mean"]),
        f"{shown(part, row['low'])}..{shown(part, row['high'])}",
        " / ".join(_count(number) for number in row["trained"].values()),
        f"{row['client_mb']:,.1f}",
        difference,
        handed,
        "" if row["kept"] is None else f"{row['kept']:.2f}",
        *(_saved(row, rate) for rate in RATES_MBIT),
    )


def shown(part: Part, figure: float) -> str:
    """Accuracy as it is; a loss as its perplexity."""
    return f"{figure:.3f}" if part.metric == "accuracy" else f"{math.exp(figure):.2f}"


def _saved(row: Mapping[str, Any], rate: int) -> str:
    share = row["saved"].get(str(rate), (None, None))[1]
    return "" if share is None else f"{share:.1%}"


def _count(number: float) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def _mean(of: Iterable[float | None]) -> float | None:
    there = [value for value in of if value is not None]
    return statistics.fmean(there) if there else None
