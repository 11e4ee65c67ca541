"""`python -m tests.benchmarks.candidates [--only NAME ...] [--seeds N] [--json] [--report]`:
candidates for the method, each beside what the product does today on the same batches and seeds.

Every arm is tried at a few points on seed 0, chosen by validation rows, and run on the other seeds
at the best. Each training is a line of docs/measured/candidates.jsonl: stop the command at any
time, and start it again. One thread. A candidate pays if its worst seed is above the product's
best.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.candidates.arms import CANDIDATES, Candidate
from tests.benchmarks.candidates.decisions import (
    ENOUGH_SEEDS,
    describe_results,
    format_table,
    list_due,
)
from tests.benchmarks.quality.results_file import Results, append_result, read_results

RESULTS = Path("docs/measured/candidates.jsonl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is due, and show the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.candidates", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--seeds", type=int, default=ENOUGH_SEEDS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", action="store_true", help="Train nothing.")
    options = parser.parse_args(arguments)
    candidates = [CANDIDATES[name] for name in options.only]
    results = read_results(RESULTS)
    if not options.report:
        _train_due(candidates, results, options.seeds)
    if options.json:
        print(json.dumps(describe_results(candidates, results, options.seeds)))
    else:
        print(format_table(candidates, results, options.seeds))
    return 0


def _train_due(candidates: Sequence[Candidate], results: Results, seeds: int) -> None:
    if not list_due(candidates, results, seeds):
        return
    # torch and the product load for seconds, which a report does not wait for.
    from tests.benchmarks.candidates.runner import TrainingRunner

    runner = TrainingRunner()
    while due := list_due(candidates, results, seeds):
        start_time = time.monotonic()
        line = runner.train(due[0])
        append_result(RESULTS, line)
        results[line["key"]] = line
        figures = line.get("unavailable") or f"test {line['test']:.3f}, {line['test_loss']:.3f}"
        seconds = time.monotonic() - start_time
        print(f"{due[0].label}: {figures} in {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
