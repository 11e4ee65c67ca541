"""Find the rows that an adapter was evaluated on when it was trained, if they are unchanged.

A separate file (data.eval) is recognised by its digest. A share of data.train (eval_fraction) can
be reproduced while the files that it was taken from still come first and are unchanged: rows in
files that were added after them do not move it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from jobs.errors import InputError
from jobs.inspect.datasets.scan import DatasetScan, scan_dataset
from jobs.inspect.recorded_spec import load_recorded_spec
from jobs.spec.schema import RunSpec
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.train.request import HeldOutRows

CHUNK_BYTES = 1 << 20


def find_previous_rows(store: ObjectStore, adapter: Manifest) -> HeldOutRows | str:
    """Return the rows, or the reason why they are not available."""
    try:
        spec = load_recorded_spec(store, adapter)
    except InputError as error:
        return error.faults[0].problem
    fraction = spec.data.eval_fraction
    source = spec.data.eval if fraction is None else spec.data.train
    if source is None:
        return f"{adapter.label} was evaluated on none"
    key = "data.eval" if fraction is None else "data.train"
    try:
        scan = scan_dataset(
            source,
            spec.data.format,
            spec.model.task,
            key,
            columns=spec.data.columns,
            label_kind=spec.data.labels,
            row_faults="skip" if spec.data.on_bad_row == "skip" else "raise",
            streaming=spec.data.streaming,
        )
    except InputError as error:
        return f"{source} can no longer be read: {error.faults[0].problem}"
    if fraction is None:
        if scan.sha256 != adapter.data.eval_sha256:
            return f"{source} has changed since {adapter.label} was evaluated on it"
        return HeldOutRows(scan, source)
    if spec.data.streaming:
        return f"they were part of {source}, which was streamed: its rows have no digest"
    return _find_share(spec, adapter, scan, source, fraction)


def _find_share(
    spec: RunSpec, adapter: Manifest, scan: DatasetScan, source: str, fraction: float
) -> HeldOutRows | str:
    count = _count_matching_files(scan.files, adapter.data.train_sha256)
    if count is None:
        return f"they were part of {source}, whose first files have changed"
    leading = replace(scan, files=scan.files[:count], rows_by_file=scan.rows_by_file[:count])
    return HeldOutRows(leading, source, count, fraction, spec.train.seed)


def _count_matching_files(files: tuple[Path, ...], sha256: str) -> int | None:
    """Return how many of the files, from the first on, have this digest together, or None."""
    digest = hashlib.sha256()
    for count, path in enumerate(files, start=1):
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() == sha256:
            return count
    return None
