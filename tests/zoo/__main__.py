"""`python -m tests.zoo`: which architectures and which rows work, in one table each.

    python -m tests.zoo                        # all models, all columns
    python -m tests.zoo mistral VLM            # some models or groups, by name
    python -m tests.zoo -k gemma               # those whose name contains this
    python -m tests.zoo --models FILE.py       # a module with CAUSAL, CLASSIFY, SEQ2SEQ, VLM
    python -m tests.zoo --columns plan,pack    # some columns
    python -m tests.zoo --rows                 # row files instead of models
    python -m tests.zoo --json                 # as JSON
    python -m tests.zoo --update FILE.json     # the same into a file: others' cells stay

The exit code is 1 if a cell is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.zoo.cells import COLUMNS, Row
from tests.zoo.load_models import OWN
from tests.zoo.results import print_json, update_results
from tests.zoo.table import TIME_LIMIT, format_legend, judge_all, select_models, show_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge what is asked for. Return 1 if anything is wrong."""
    options = parse_arguments(arguments)
    if options.rows:
        from tests.zoo.row_table import show_row_table

        return show_row_table(options.names, as_json=options.json)
    columns = [name for name in COLUMNS if name in options.columns.split(",")]
    selection = select_models(options.models, options.names, options.k)
    rows = follow_rows(
        judge_all(
            options.models, selection, columns=columns, jobs=options.jobs, limit=options.limit
        ),
        len(selection),
    )
    if options.update:
        results = update_results(options.update, rows, select_models(options.models))
    elif options.json:
        results = print_json(rows)
    else:
        print("\n".join([*format_legend(columns), ""]))
        results = show_table(rows, columns, lambda line: print(line, flush=True))
    return int(any(row.is_wrong for row in results))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.zoo", description="Which architectures and rows work."
    )
    parser.add_argument("names", nargs="*", help="Models or groups; all by default.")
    parser.add_argument("-k", default="", metavar="TEXT", help="Models whose name contains it.")
    parser.add_argument("--models", default=OWN, metavar="FILE.py", help="Another zoo.")
    parser.add_argument("--columns", default=",".join(COLUMNS), help="Some of the columns.")
    parser.add_argument("--rows", action="store_true", help="Judge row files instead of models.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument(
        "--update", type=Path, metavar="FILE.json", help="Write JSON into this file of results."
    )
    parser.add_argument("--jobs", type=int, default=1, help="Models at once.")
    parser.add_argument(
        "--limit", type=float, default=TIME_LIMIT, help="Seconds that a model may take."
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.columns.split(",")) - COLUMNS.keys():
        parser.error(f"no such column: {', '.join(sorted(unknown))}")
    return options


def follow_rows(rows: Iterator[Row], count: int) -> Iterator[Row]:
    """Yield the rows, and show on a terminal how many are done."""
    started = time.monotonic()
    for number, row in enumerate(rows, start=1):
        yield row
        if sys.stderr.isatty():
            seconds = time.monotonic() - started
            end = "\n" if number == count else "\r"
            print(f"{number} of {count}, {seconds:.0f} s ", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    # The ranks train on CPUs. DeepSpeed, where it has to guess that, warns on stdout.
    os.environ.update(HF_HUB_OFFLINE="1", DS_ACCELERATOR="cpu", TRANSFORMERS_VERBOSITY="error")
    sys.exit(main())
