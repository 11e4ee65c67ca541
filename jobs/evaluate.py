"""`python -m jobs.evaluate --adapter NAME --data FILE`: evaluate a committed adapter.

The rows are read, rendered and packed as those of the adapter's run, unless an option differs. With
`--endpoint URL` the losses are those of a server that answers with the adapter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.scan import DatasetScan
from jobs.plan.token_tally import TokenTally, iter_tally_notes
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.tools.adapter_arguments import make_adapter_parser
from jobs.tools.adapter_rows import load_adapter_spec, scan_adapter_rows
from jobs.train.job_main import run_job
from jobs.train.monitor.event_text import format_metrics

if TYPE_CHECKING:
    from jobs.tools.load_adapter import AdaptedModel

BATCH_SIZE = 4
"""Sequences at once; the result does not depend on it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate one adapter. Exit codes as in `jobs.finetune`."""
    options = _make_parser().parse_args(arguments)

    def work() -> None:
        _check_options(options)
        store = open_store(options.store)
        if options.suite is not None:
            from jobs.tools.endpoint.task_suite import run_suite

            _print_suite(options, *run_suite(store, options))
            return
        if options.endpoint is not None:
            from jobs.tools.endpoint.endpoint_evaluation import evaluate_endpoint

            label, metrics, tally = evaluate_endpoint(store, options, _override_spec)
        else:
            label, metrics, tally = _evaluate_here(store, options)
        for note in iter_tally_notes(tally, "--data"):
            print(f"{note}.", file=sys.stderr)
        if options.json:
            print(json.dumps({"adapter": label, **metrics, "data": tally.to_json()}))
        else:
            print(f"{label} on {tally.rows:,} rows: {format_metrics(metrics)}")

    return run_job(work)


def _make_parser() -> argparse.ArgumentParser:
    parser = make_adapter_parser("jobs.evaluate", "Evaluate a committed adapter on held-out rows.")
    parser.add_argument("--data", help="Rows to evaluate on, in the form of data.eval in a spec.")
    parser.add_argument(
        "--suite",
        metavar="TASK",
        help="A task of lm-eval-harness instead of rows: its name, or the path of its YAML file.",
    )
    parser.add_argument(
        "--format", help="Format of the rows, as data.format in a spec, if not that of the run."
    )
    parser.add_argument(
        "--columns",
        metavar="FIELD=COLUMN",
        nargs="+",
        help="Columns of fields with other names, as data.columns, if not those of the run.",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        help="Maximum number of tokens of a sequence, if not that of the adapter's run.",
    )
    parser.add_argument(
        "--on-bad-row",
        choices=("fail", "skip"),
        help="End with the faults of bad rows, or skip them, if not as the run does.",
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="OpenAI-compatible server that answers with the adapter, to be judged by its own "
        "log-probabilities. Its key is read from OPENAI_API_KEY.",
    )
    parser.add_argument(
        "--served-as", metavar="NAME", help="The server's name of the adapter, if it is another."
    )
    parser.add_argument("--json", action="store_true", help="Output JSON.")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    """Raise InputError for options that are missing or have no effect."""
    if (options.data is None) == (options.suite is None):
        problem = "an evaluation needs either rows, or a task of a suite"
        raise InputError([Fault("--data", problem, "Use --data FILE or --suite TASK.")])
    if options.served_as is not None and options.endpoint is None:
        problem = "there is no server to ask without --endpoint"
        raise InputError([Fault("--served-as", problem, "Add --endpoint URL.")])


def _print_suite(options: argparse.Namespace, label: str, metrics: dict[str, float]) -> None:
    if options.json:
        print(json.dumps({"adapter": label, "suite": options.suite, **metrics}))
    else:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"{label} on {options.suite}: {figures}")


def _evaluate_here(
    store: ObjectStore, options: argparse.Namespace
) -> tuple[str, dict[str, float], TokenTally]:
    """Return the adapter's label, its metrics computed by this process, and the rows' tally."""
    # Imported here, so that a wrong argument is answered before torch is loaded.
    from jobs.tools.load_adapter import load_adapted_model

    adapted = load_adapted_model(store, options.adapter, base=options.base)
    spec = load_adapter_spec(
        store, adapted.manifest, options, task=adapted.task, label_kind=adapted.saved.label_kind
    )
    spec = _override_spec(spec, options)
    scan = scan_adapter_rows(spec, options.data, adapted.labels)
    metrics, tally = _evaluate_rows(spec, adapted, scan)
    return adapted.manifest.label, metrics, tally


def _override_spec(spec: RunSpec, options: argparse.Namespace) -> RunSpec:
    """Return the spec with the options of the command. Raise InputError if one does not fit."""
    changes = {
        "format": options.format,
        "columns": options.columns and _parse_columns(options.columns),
        "max_length": options.max_length,
        "on_bad_row": options.on_bad_row,
    }
    # All rows are read, and their share of bad ones is shown.
    changes |= {"streaming": False, "max_dropped": 1.0}
    if options.format and not options.columns:
        changes["columns"] = {}
    values = spec.model_dump(mode="json")
    values["data"] |= {name: value for name, value in changes.items() if value is not None}
    return validate_spec(values)


def _parse_columns(columns: Sequence[str]) -> dict[str, str]:
    pairs = dict(pair.split("=", 1) for pair in columns if "=" in pair)
    if len(pairs) < len(columns):
        problem = f"{' '.join(columns)} does not name fields and columns"
        raise InputError([Fault("--columns", problem, "Use FIELD=COLUMN, e.g. prompt=question.")])
    return pairs


def _evaluate_rows(
    spec: RunSpec, adapted: AdaptedModel, scan: DatasetScan
) -> tuple[dict[str, float], TokenTally]:
    """Return the metrics, and the tally of the rows. Raise InputError with all faults of rows."""
    from jobs.tools.adapter_feed import open_adapter_feed
    from jobs.train.evaluation import evaluate

    with open_adapter_feed(spec, adapted, scan, batch_size=BATCH_SIZE) as rows:
        metrics = evaluate(adapted.model, rows.feed, device=rows.device, choice=rows.choice)
    return metrics, rows.tally


if __name__ == "__main__":
    sys.exit(main())
