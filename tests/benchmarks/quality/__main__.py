"""`python -m tests.benchmarks.quality`: what each method learns, at equal parameters and tokens.

MiniLM sorts 20 Newsgroups (accuracy), SmolLM2 learns a small chat corpus (loss of the answers).
Every method sees the same batches and trains about as many parameters: factors of rank 4, and masks
of the density that has as many entries (masks sized by the rank have fewer). Each runs at the best
of three learning rates of its own, chosen on seed 0 and a validation split of the training rows,
then on three seeds; the test rows choose nothing.

Cut, against a run of the whole data, to finish on 2 cores: texts to 32 and 64 tokens, 80 and 16
steps, 4,000 training and 1,000 test texts of the newsgroups. All methods are cut alike; what is
learnt late, or from long texts, is not seen. Cutting layers of MiniLM is no way: with 3 of its 6
LoRA learns nothing in 80 steps. `--size full` cuts nothing, for a GPU.

Every finished training is a line of the results file; a second start does only what is missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.quality.outside import tfidf
from tests.benchmarks.quality.plan import (
    RIVALS,
    SIZES,
    Part,
    Rival,
    Setting,
    best,
    grid,
    repeats,
)
from tests.benchmarks.quality.training import append, prepared, start_process, train_one

FOLDER = Path(".cache/quality")
Results = dict[str, dict[str, Any]]


def main() -> int:
    """Exit code 0 when the table is whole."""
    asked = _parser().parse_args()
    path = asked.results or FOLDER / f"{asked.size}.jsonl"
    parts = [part for name, part in SIZES[asked.size].items() if name in asked.part]
    rivals = tuple(
        rival for rival in RIVALS if asked.methods is None or rival.name in asked.methods
    )
    if not asked.table:
        for part in parts:
            _run(part, rivals, path, asked)
    done = read(path)
    if asked.json:
        print(json.dumps([row for part in parts for row in rows(part, rivals, done)]))
        return 0
    for part in parts:
        _show(part, rows(part, rivals, done), done, markdown=asked.markdown)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--part", nargs="+", choices=["newsgroups", "chat"],
                        default=["newsgroups", "chat"])  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=[rival.name for rival in RIVALS])
    parser.add_argument("--results", type=Path, help="the file of results")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once")
    parser.add_argument("--threads", type=int, default=1, help="of one training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--markdown", action="store_true", help="the table for docs/results.md")
    parser.add_argument("--json", action="store_true")
    return parser


def read(path: Path) -> Results:
    """The results so far by key; a line that a crash cut short counts as none."""
    found: Results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        found[result["key"]] = result
    return found


def _run(part: Part, rivals: tuple[Rival, ...], path: Path, asked: Any) -> None:
    data = prepared(part, FOLDER / "data")
    if part.name == "newsgroups" and f"tfidf {part}" not in read(path):
        append(path, {"key": f"tfidf {part}", **tfidf(data)})
    _train_all(list(grid(part, rivals)), data, path, asked)
    done = read(path)
    more = [
        setting
        for rival in rivals
        if (rates := _chosen(part, rival, done)) is not None
        for setting in repeats(part, rival, rates)
    ]
    _train_all(more, data, path, asked)


def _train_all(wanted: list[Setting], data: Mapping[str, str], path: Path, asked: Any) -> None:
    done = read(path)
    missing = [setting for setting in wanted if setting.key not in done]
    if not missing:
        return
    pool = ProcessPoolExecutor(
        asked.workers, mp.get_context("spawn"), start_process, (asked.threads, asked.device)
    )
    try:
        waiting = {pool.submit(train_one, one, data, asked.device): one for one in missing}
        for number, ready in enumerate(as_completed(waiting), start=1):
            setting, found = waiting[ready], ready.result()
            append(path, {"key": setting.key, **found})
            said = found.get("unavailable") or f"{found['test']:.3f} in {found['seconds']:.0f} s"
            told = f"{setting.part.name}, {setting.rival}, {setting.rates}, seed {setting.seed}"
            print(f"{number}/{len(missing)} {told}: {said}", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _chosen(part: Part, rival: Rival, done: Results) -> tuple[float | None, float] | None:
    tried = {
        setting.rates: done[setting.key]["validation"]
        for setting in grid(part, (rival,))
        if "validation" in done.get(setting.key, {})
    }
    return best(part, tried) if tried else None


def rows(part: Part, rivals: Iterable[Rival], done: Results) -> list[dict[str, Any]]:
    """One row a method, over the seeds that are there."""
    found = []
    for rival in rivals:
        rates = _chosen(part, rival, done)
        if rates is None:
            continue
        settings = [s for s in grid(part, (rival,)) if s.rates == rates]
        results = [done[s.key] for s in [*settings, *repeats(part, rival, rates)] if s.key in done]
        found.append(_row(part, rival, rates, results))
    return found


def _row(
    part: Part, rival: Rival, rates: tuple[float | None, float], results: list[dict[str, Any]]
) -> dict[str, Any]:
    tests = [result["test"] for result in results]
    reached = [result["tokens_to_target"] for result in results]

    def mean(of: Iterable[float | None]) -> float | None:
        there = [value for value in of if value is not None]
        return statistics.fmean(there) if there else None

    return {
        "part": part.name,
        "method": rival.name,
        "rates": list(rates),
        "seeds": len(tests),
        "mean": statistics.fmean(tests),
        "low": min(tests),
        "high": max(tests),
        "share": results[0]["share"],
        "kept": mean(result["kept"] for result in results),
        "before_handoff": mean(result["stages"].get("sparse") for result in results)
        if "handoff" in results[0]["stages"] else None,
        "after_handoff": mean(result["stages"].get("handoff") for result in results),
        "tokens_to_target": mean(reached) if None not in reached else None,
        "reached": sum(value is not None for value in reached),
        "step_seconds": statistics.median(result["step_seconds"] for result in results),
    }  # fmt: skip


HEADERS = ("method", "rate", "test", "spread", "trained", "kept", "hand-off", "tokens")


def _show(part: Part, found: list[dict[str, Any]], done: Results, *, markdown: bool) -> None:
    title = f"{part.name}: test {part.metric}, tokens to {part.target:g}"
    cells = [_cells(part, row) for row in found]
    outside = done.get(f"tfidf {part}")
    if outside:
        for name in ("same rows", "all rows"):
            figure = f"{outside[name]:.3f}"
            cells.append((f"TF-IDF + linear, {name}", "", figure, "", "", "", "", ""))
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
    Console(width=110).print(table)


def _cells(part: Part, row: Mapping[str, Any]) -> tuple[str, ...]:
    handoff = ""
    if row["before_handoff"] is not None and row["after_handoff"] is not None:
        handoff = f"{row['before_handoff']:.3f} -> {row['after_handoff']:.3f}"
    tokens = f"{row['tokens_to_target']:,.0f}" if row["tokens_to_target"] is not None else (
        f"{row['reached']} of {row['seeds']}" )  # fmt: skip
    return (
        row["method"],
        " / ".join(f"{rate:g}" for rate in row["rates"] if rate is not None),
        f"{row['mean']:.3f}",
        f"{row['low']:.3f}..{row['high']:.3f}",
        f"{row['share']:.2%}",
        "" if row["kept"] is None else f"{row['kept']:.2f}",
        handoff,
        tokens,
    )


if __name__ == "__main__":
    sys.exit(main())
