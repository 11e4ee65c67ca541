"""What a plan tells of the data: files and their rows, what is left out, and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.inspect.datasets.file_selection import SPLIT_REASON
from jobs.inspect.datasets.scan import DatasetScan
from jobs.plan.preflight import ValidatedRun

MAX_LISTED = 5
"""Files and columns that are listed; the others are counted."""


def describe_data(checked: ValidatedRun) -> dict[str, Any]:
    """Return the data of a run as plain values, for `--json`."""
    return {
        **{name: scan.to_json() for name, scan in _iter_scans(checked)},
        "warnings": list(find_data_warnings(checked)),
    }


def find_data_warnings(checked: ValidatedRun) -> Iterator[str]:
    """Yield the warnings of the scans, and that a split is not used."""
    for name, scan in _iter_scans(checked):
        yield from (f"data.{name}: {warning}" for warning in scan.warnings)
    data = checked.spec.data
    if data.eval is not None or data.eval_fraction is not None:
        return
    reasons = {item.reason for item in checked.train_scan.skipped}
    splits = sorted(
        reason.removeprefix(SPLIT_REASON) for reason in reasons if reason.startswith(SPLIT_REASON)
    )
    if splits:
        yield (
            f"the split {' and '.join(splits)} of data.train is not used: "
            f"set data.eval: {data.train} to evaluate on it"
        )


def list_data_lines(checked: ValidatedRun) -> Iterator[tuple[str, str]]:
    """Yield a name and a text for each line of the plan about files and columns."""
    for name, scan in _iter_scans(checked):
        yield f"{name} files", _join_listed([*_iter_files(scan)], "files")
        if scan.columns:
            yield "columns", ", ".join(f"{key}: {column}" for key, column in scan.columns.items())
        if scan.unused_columns:
            yield "not used", _list_unused(scan)
        if name == "train" and scan.skipped:
            skipped = [f"{item.path.name} ({item.reason})" for item in scan.skipped]
            yield "left out", _join_listed(skipped, "files")
    yield from (("warning", f"{warning}.") for warning in find_data_warnings(checked))


def list_unused_columns(checked: ValidatedRun) -> Iterator[tuple[str, str]]:
    """Yield the key and a text for each data set with columns that nothing reads."""
    for name, scan in _iter_scans(checked):
        if scan.unused_columns:
            yield f"data.{name}", _list_unused(scan)


def _list_unused(scan: DatasetScan) -> str:
    return f"columns {_join_listed([*scan.unused_columns], 'columns')}"


def _iter_scans(checked: ValidatedRun) -> Iterator[tuple[str, DatasetScan]]:
    yield "train", checked.train_scan
    if checked.eval_scan is not None:
        yield "eval", checked.eval_scan


def _iter_files(scan: DatasetScan) -> Iterator[str]:
    """Yield each file with its rows; a plan reads the first rows only."""
    unread = not scan.is_complete
    for path, kind, rows in zip(scan.files, scan.kinds, scan.rows_by_file, strict=True):
        yield f"{path.name} ({kind}, {_count_rows(rows, unread=unread)})"


def _count_rows(rows: int, *, unread: bool) -> str:
    if not unread:
        return f"{rows:,} rows"
    return f"{rows:,} rows read" if rows else "not read yet"


def _join_listed(items: list[str], noun: str) -> str:
    more = [f"{len(items) - MAX_LISTED:,} more {noun}"] if len(items) > MAX_LISTED else []
    return ", ".join([*items[:MAX_LISTED], *more])
