"""Write `results.parquet`: one row per trial, with a column for each searched key."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from jobs.search.report.format import list_keys
from jobs.search.trial_record import TrialRecord

COLUMNS: dict[str, pa.DataType] = {
    "number": pa.int64(),
    "config": pa.string(),
    "status": pa.string(),
    "run": pa.string(),
    "metric": pa.float64(),
    "curve": pa.list_(pa.struct([("step", pa.int64()), ("value", pa.float64())])),
    "steps": pa.int64(),
    "tokens": pa.int64(),
    "seconds": pa.float64(),
    "trainable_share": pa.float64(),
    "node_bytes": pa.float64(),
    "adapter_bytes": pa.float64(),
    "memory_bytes": pa.float64(),
    "reason": pa.string(),
    "shared": pa.list_(pa.string()),
}
"""The fields of a record. `config` holds all searched values as JSON, too."""
CONFIG_PREFIX = "config."
"""Prefix of each searched key, so that no key collides with a field."""
INT64_LIMIT = 2**63


def write_parquet(path: str | Path, records: Sequence[TrialRecord]) -> None:
    """Write the file at `path` atomically."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    parquet.write_table(build_table(records), partial)
    os.replace(partial, path)


def build_table(records: Sequence[TrialRecord]) -> pa.Table:
    """Return a table of the records: fields first, then one column per searched key."""
    assert set(COLUMNS) == {field.name for field in fields(TrialRecord)}, (
        "each field needs a column"
    )
    arrays = {
        name: pa.array([_get_cell(record, name) for record in records], kind)
        for name, kind in COLUMNS.items()
    }
    for key in list_keys(records):
        arrays[CONFIG_PREFIX + key] = _build_column([record.config.get(key) for record in records])
    return pa.table(arrays)


def _get_cell(record: TrialRecord, name: str) -> Any:
    if name == "config":
        return json.dumps(dict(record.config), default=str)
    if name == "curve":
        return [{"step": step, "value": value} for step, value in record.curve]
    return getattr(record, name)


def _build_column(values: Sequence[Any]) -> pa.Array:
    """Return the values of one key as integers, floats or booleans, or as text if mixed."""
    kinds = {_get_type(value) for value in values if value is not None}
    if kinds == {int, float}:
        kinds = {float}
        values = [None if value is None else float(value) for value in values]
    if len(kinds) == 1:
        kind = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}.get(*kinds)
        if kind is not None:
            return pa.array(values, kind)
    return pa.array([_format_value(value) for value in values], pa.string())


def _get_type(value: Any) -> type:
    if isinstance(value, int) and not -INT64_LIMIT <= value < INT64_LIMIT:
        return str
    return type(value)


def _format_value(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)
