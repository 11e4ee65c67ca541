"""`python -m jobs.evaluate --adapter NAME --data FILE`: evaluate a committed adapter.

The rows are read, rendered and packed as those of the adapter's run, unless an option differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.labels import list_unknown_labels
from jobs.inspect.datasets.scan import DatasetScan, scan_dataset
from jobs.inspect.encoder_decoders import END_CLASSIFIERS
from jobs.inspect.recorded_spec import find_recorded_spec
from jobs.plan.packing_choice import UNDECIDED
from jobs.plan.token_tally import TokenTally, iter_tally_notes
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.tools.adapter_arguments import make_adapter_parser
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
        # Imported here, so that a wrong argument is answered before torch is loaded.
        from jobs.tools.load_adapter import load_adapted_model

        store = open_store(options.store)
        adapted = load_adapted_model(store, options.adapter, base=options.base)
        spec = _override_spec(_load_spec(store, adapted, options), options)
        scan = _scan_rows(spec, options.data, adapted.labels)
        metrics, tally = _evaluate_rows(spec, adapted, scan)
        label = adapted.manifest.label
        for note in iter_tally_notes(tally, "--data"):
            print(f"{note}.", file=sys.stderr)
        if options.json:
            print(json.dumps({"adapter": label, **metrics, "data": tally.to_json()}))
        else:
            print(f"{label} on {tally.rows:,} rows: {format_metrics(metrics)}")

    return run_job(work)


def _make_parser() -> argparse.ArgumentParser:
    parser = make_adapter_parser("jobs.evaluate", "Evaluate a committed adapter on held-out rows.")
    parser.add_argument(
        "--data", required=True, help="Rows to evaluate on, in the form of data.eval in a spec."
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
    parser.add_argument("--json", action="store_true", help="Output JSON.")
    return parser


def _load_spec(store: ObjectStore, adapted: AdaptedModel, options: argparse.Namespace) -> RunSpec:
    """Return the spec of the adapter's run; where its files are gone, one of the options alone."""
    manifest = adapted.manifest
    spec = find_recorded_spec(store, manifest)
    if spec is not None:
        return spec
    problem = f"the files of run {manifest.run} are not in the store"
    if options.max_length is None:
        remedy = "Restore them under runs/, or use --max-length to read the rows without its spec."
        raise InputError([Fault(manifest.label, problem, remedy)])
    print(f"{manifest.label}: {problem}. The rows are read as options say.", file=sys.stderr)
    values = {
        "name": manifest.name,
        "model": {"path": manifest.base.path, "task": adapted.task},
        "data": {"train": options.data, "labels": adapted.saved.label_kind or "one"},
        "train": {"steps": 1},
        "store": options.store,
    }
    return validate_spec(values)


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


def _scan_rows(spec: RunSpec, path: str, known_labels: tuple[str, ...]) -> DatasetScan:
    data = spec.data
    skips = data.on_bad_row == "skip"
    scan = scan_dataset(
        path,
        data.format,
        spec.model.task,
        "--data",
        columns=data.columns,
        label_kind=data.labels,
        row_faults="skip" if skips else "return",
    )
    unknown_labels = list_unknown_labels(scan.labels, known_labels)
    if unknown_labels and not skips:
        names = ", ".join(map(repr, unknown_labels[:8]))
        problem = f"the adapter was not trained on these labels: {names}"
        raise InputError([Fault("--data", problem, "Remove the rows with these labels.")])
    return scan


def _evaluate_rows(
    spec: RunSpec, adapted: AdaptedModel, scan: DatasetScan
) -> tuple[dict[str, float], TokenTally]:
    """Return the metrics, and the tally of the rows. Raise InputError with all faults of rows."""
    import torch

    from jobs.train.comm.collectives import WorkerContext
    from jobs.train.data.global_batches import Feed
    from jobs.train.data.source import RowSource, TableSamples
    from jobs.train.data.token_pass import make_token_inputs, write_table
    from jobs.train.data.tokenization import Encoder
    from jobs.train.data.tokenize_run import include_scan_faults
    from jobs.train.evaluation import evaluate
    from jobs.train.model.settle_loss import settle_loss
    from jobs.train.model.settle_packing import settle_packing

    context = WorkerContext(0, 1, torch.device("cpu"))
    packing = settle_packing(spec, UNDECIDED, adapted.model, context)
    choice = settle_loss(spec, adapted.model, context)
    tokenizer, max_length = adapted.tokenizer, spec.data.max_length
    embeddings = adapted.model.get_input_embeddings().weight.shape[0]
    encoder = Encoder(
        tokenizer,
        max_length=max_length,
        labels=adapted.labels,
        embeddings=embeddings,
        is_seq2seq=adapted.task == "seq2seq",
        reads_class_at_end=adapted.model.config.model_type in END_CLASSIFIERS,
    )
    with tempfile.TemporaryDirectory(prefix="slora-tokens-") as scratch:
        inputs = make_token_inputs(spec, Path(scratch), scan, adapted.labels)
        with include_scan_faults(scan):
            tally = write_table(Path(scratch) / "table", inputs, encoder)
        rows = RowSource(scan.files, scan.format, scan.columns, split="eval")
        feed = Feed(
            TableSamples(Path(scratch) / "table", rows),
            tokenizer,
            kind=spec.target_kind,
            max_length=max_length,
            packing=packing.mode,
            batch_size=BATCH_SIZE,
            micro_batch_size=BATCH_SIZE,
            rank=0,
            world_size=1,
            seed=0,
            shuffle=False,
            embeddings=embeddings,
        )
        return evaluate(adapted.model, feed, device=context.device, choice=choice), tally


if __name__ == "__main__":
    sys.exit(main())
