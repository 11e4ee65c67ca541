"""`python -m tests.benchmarks.rates [--write]`: fit the rule of `train.learning_rate: auto`.

Reads docs/measured/rates.json: a list of grids, each a method on a data set with the figure at each
rate (or the `best` rate alone, where it was published). Prints the constants that fit them, and the
table of measured rates beside the rule's. `--write` puts both where they belong: into
jobs/plan/rate_rule.py and docs/guides/rates.md.

A constant is the geometric mean of what its grids ask for. Rates are a factor of two or so apart in
a grid, so the best one is known no better than that.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.plan.rate_choice import make_rate_subject
from jobs.plan.rate_rule import (
    BASE,
    FACTOR,
    POWER,
    RateSubject,
    compute_rule_rate,
    compute_width_law,
    round_rate,
)
from jobs.spec.schema import MethodSection

ROOT = Path(__file__).parents[2]
DATA, PAGE = ROOT / "docs/measured/rates.json", ROOT / "docs/guides/rates.md"
RULE = ROOT / "jobs/plan/rate_rule.py"
MARKS = ("<!-- rates -->", "<!-- end of rates -->")
METHOD_KEYS = ("kind", "mask", "density", "rank", "init", "factor_density")


@dataclass(frozen=True)
class Grid:
    """A measured grid, and what the rule makes of it."""

    row: dict[str, Any]

    @property
    def best(self) -> float:
        """Return the rate with the best figure, or the published one."""
        if "best" in self.row:
            return float(self.row["best"])
        sign = -1 if self.row["better"] == "higher" else 1
        return float(min(self.row["grid"], key=lambda pair: sign * pair[1])[0])

    @property
    def is_edge(self) -> bool:
        """Return whether the best rate is the lowest or highest of its grid, and so a bound."""
        rates = [rate for rate, _ in self.row.get("grid", ())]
        return bool(rates) and self.best in (min(rates), max(rates))

    @property
    def subject(self) -> RateSubject:
        """Return what was trained."""
        row = self.row
        method = MethodSection(**{key: row[key] for key in METHOD_KEYS if key in row})
        stage = "sparse" if method.kind == "sparse" else "other"
        return make_rate_subject(method, stage, row["family"], row["hidden"])

    @property
    def base(self) -> float:
        """Return the constant that would make the rule exact here, without FACTOR."""
        subject = self.subject
        law = compute_width_law(subject.hidden) / subject.share ** POWER[subject.form]
        return self.best / law

    def describe(self) -> str:
        """Return the method in words."""
        row = self.row
        text = {"lora": "LoRA", "sparse": "sparse values", "full": "full fine-tuning"}[row["kind"]]
        if "rank" in row:
            text += f", rank {row['rank']}"
        if row.get("factor_density", 1.0) < 1:
            text += f", 1/{1 / row['factor_density']:.0f} of the factors"
        if "density" in row:
            text += f", {row['mask']}, {row['density']:.1%}"
        return text + (f", {row['init']}" if "init" in row else "")


def read_grids(path: Path = DATA) -> list[Grid]:
    """Return the measured grids."""
    return [Grid(row) for row in json.loads(path.read_text())]


def fit_rule(grids: Sequence[Grid]) -> tuple[dict[Any, float], dict[str, float]]:
    """Return BASE and FACTOR, each constant rounded to two digits."""
    plain = [grid for grid in grids if grid.subject.factor is None]
    base = {
        cell: average_rates(g.base for g in plain if (g.subject.form, g.subject.family) == cell)
        for cell in BASE
    }
    factor = {
        name: average_rates(
            grid.base / base[grid.subject.form, grid.subject.family]
            for grid in grids
            if grid.subject.factor == name
        )
        for name in FACTOR
    }
    return base, factor


def average_rates(rates: Iterable[float]) -> float:
    """Return the geometric mean, with two digits."""
    logs = [math.log(rate) for rate in rates]
    return round_rate(math.exp(sum(logs) / len(logs)))


def format_table(grids: Sequence[Grid]) -> str:
    """Return the measured rates, the rule's, and their ratio, as a table of Markdown."""
    lines = [
        "| trained | model, width | on | best of the grid | rule | rule / best |",
        "|---|---|---|---|---|---|",
    ]
    ratios = []
    for grid in grids:
        row, rule = grid.row, compute_rule_rate(grid.subject)
        ratios.append(rule / grid.best)
        edge = " (edge)" if grid.is_edge else ""
        origin = "published" if "best" in row else row["data"]
        lines.append(
            f"| {grid.describe()} | {row['model']}, {row['hidden']} | {origin} | "
            f"{grid.best:g}{edge} | {rule:g} | {ratios[-1]:.2f} |"
        )
    worst = max(max(ratio, 1 / ratio) for ratio in ratios)
    spread = math.exp(math.sqrt(sum(math.log(ratio) ** 2 for ratio in ratios) / len(ratios)))
    lines.append("")
    lines.append(
        f"Typical error: a factor of {spread:.1f}; the largest, {worst:.1f}. "
        f"{sum(grid.is_edge for grid in grids)} of {len(grids)} best rates are at an edge of their "
        "grid, and so only bounds."
    )
    return "\n".join(lines)


def replace_part(text: str, part: str) -> str:
    """Return the page with the part between its marks replaced."""
    start, end = MARKS
    head, _, rest = text.partition(start)
    return f"{head}{start}\n\n{part}\n\n{end}{rest.partition(end)[2]}"


def write_rule(text: str, base: dict[Any, float], factor: dict[str, float]) -> str:
    """Return the module with other constants."""
    lines = [f'    ("{form}", "{family}"): {rate:.1e},' for (form, family), rate in base.items()]
    body = "\n".join(lines).replace("e-0", "e-")
    text = re.sub(r"(BASE: [^=]*= \{\n).*?(\n\})", rf"\g<1>{body}\g<2>", text, flags=re.S)
    factors = ", ".join(f'"{name}": {value:g}' for name, value in factor.items())
    return re.sub(r"^FACTOR = \{.*\}", f"FACTOR = {{{factors}}}", text, flags=re.M)


def main() -> int:
    """Print the fit, and write it with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="Write the module and the page.")
    arguments = parser.parse_args()
    grids = read_grids()
    base, factor = fit_rule(grids)
    for name, value in [*base.items(), *factor.items()]:
        print(f"{name}: {value:g}")
    if arguments.write:
        RULE.write_text(write_rule(RULE.read_text(), base, factor))
        BASE.update(base)
        FACTOR.update(factor)
        PAGE.write_text(replace_part(PAGE.read_text(), format_table(grids)))
    print(format_table(grids))
    return 0


if __name__ == "__main__":
    sys.exit(main())
