"""`python -m jobs.evaluate --adapter NAME --data FILE`: evaluate a committed adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.scan import DatasetScan, scan_dataset
from jobs.inspect.recorded_spec import load_recorded_spec
from jobs.plan.packing_choice import UNDECIDED
from jobs.spec.schema import RunSpec
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.tools.adapter_arguments import make_adapter_parser
from jobs.train.job_main import run_job
from jobs.train.monitor.event_text import format_metrics

BATCH_SIZE = 4
"""Sequences at once; the result does not depend on it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate one adapter. Exit codes as in `jobs.finetune`."""
    parser = make_adapter_parser("jobs.evaluate", "Evaluate a committed adapter on held-out rows.")
    parser.add_argument(
        "--data", required=True, help="Rows to evaluate on, in the form of data.eval in a spec."
    )
    parser.add_argument(
        "--format", default="auto", help="Format of the rows, as data.format in a spec."
    )
    parser.add_argument(
        "--max-length",
        type=int,
        help="Maximum number of tokens of a sequence, if not that of the adapter's run.",
    )
    parser.add_argument("--json", action="store_true", help="Output JSON.")
    options = parser.parse_args(arguments)

    def work() -> None:
        # Imported here, so that a wrong argument is answered before torch is loaded.
        import torch

        from jobs.tools.load_adapter import load_adapted_model
        from jobs.train.comm.collectives import WorkerContext
        from jobs.train.data.global_batches import Feed
        from jobs.train.data.source import RowSource, StreamedSamples
        from jobs.train.data.tokenization import Encoder
        from jobs.train.evaluation import evaluate
        from jobs.train.model.settle_packing import settle_packing

        store = open_store(options.store)
        adapted = load_adapted_model(store, options.adapter, base=options.base)
        scan = scan_dataset(options.data, options.format, adapted.task, "--data")
        _check_labels(scan, adapted.labels)
        spec = _load_spec(store, adapted.manifest, options.max_length)
        context = WorkerContext(0, 1, torch.device("cpu"))
        packing = settle_packing(spec, UNDECIDED, adapted.model, context)
        encoder = Encoder(adapted.tokenizer, max_length=spec.data.max_length, labels=adapted.labels)
        rows = RowSource(scan.files, scan.format, scan.columns, labels=adapted.labels)
        feed = Feed(
            StreamedSamples(rows, encoder, adapted.task),
            adapted.tokenizer,
            task=adapted.task,
            max_length=spec.data.max_length,
            packing=packing.mode,
            batch_size=BATCH_SIZE,
            micro_batch_size=BATCH_SIZE,
            rank=0,
            world_size=1,
            seed=0,
            shuffle=False,
        )
        metrics = evaluate(adapted.model, feed, task=adapted.task, device=context.device)
        if options.json:
            print(json.dumps({"adapter": adapted.manifest.label, **metrics}))
        else:
            print(f"{adapted.manifest.label} on {scan.rows:,} rows: {format_metrics(metrics)}")

    return run_job(work)


def _load_spec(store: ObjectStore, manifest: Manifest, max_length: int | None) -> RunSpec:
    """Return the spec of the adapter's run, with another maximum length if one is given."""
    spec = load_recorded_spec(store, manifest)
    if max_length is None:
        return spec
    return spec.model_copy(update={"data": spec.data.model_copy(update={"max_length": max_length})})


def _check_labels(scan: DatasetScan, known_labels: tuple[str, ...]) -> None:
    unknown_labels = [label for label in scan.labels if label not in known_labels]
    if unknown_labels:
        names = ", ".join(map(repr, unknown_labels[:8]))
        problem = f"the adapter was not trained on these labels: {names}"
        raise InputError([Fault("--data", problem, "Remove the rows with these labels.")])


if __name__ == "__main__":
    sys.exit(main())
