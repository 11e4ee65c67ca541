"""Find out how to read rows for a committed adapter: as its run did. No torch."""

from __future__ import annotations

import argparse
import sys

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.labels import list_unknown_labels
from jobs.inspect.datasets.scan import DatasetScan, scan_dataset
from jobs.inspect.recorded_spec import find_recorded_spec
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore


def load_adapter_spec(
    store: ObjectStore,
    manifest: Manifest,
    options: argparse.Namespace,
    *,
    task: str,
    label_kind: str | None = None,
) -> RunSpec:
    """Return the spec of the adapter's run; where its files are gone, one of the options alone."""
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
        "model": {"path": manifest.base.path, "task": task},
        "data": {"train": options.data, "labels": label_kind or "one"},
        "train": {"steps": 1},
        "store": options.store,
    }
    return validate_spec(values)


def scan_adapter_rows(spec: RunSpec, path: str, known_labels: tuple[str, ...]) -> DatasetScan:
    """Return the rows at `path`. Raise InputError if they have labels that the adapter lacks."""
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
