"""Stream the rows of Parquet and Arrow files (Feather, and those of `save_to_disk`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import Fault, ReadLimitExceeded
from jobs.inspect.datasets.data_row import COPY_AGAIN, ChunkHandler, FaultHandler, Row
from jobs.inspect.datasets.readers.raw_bytes import read_head
from jobs.places.boundary import open_checked
from jobs.store.head_copies import is_partial

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 16
"""Rows converted to Python values at once: one of them may be large."""
PANDAS_INDEX = "__index_level_0__"


def read_parquet(path: Path, report: FaultHandler, on_chunk: ChunkHandler | None) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    import pyarrow.parquet as pq

    def iterate_batches() -> Iterator[pa.RecordBatch]:
        with open_checked(path) as opened, pq.ParquetFile(opened) as table:
            yield from table.iter_batches(batch_size=1024)

    _require_end(path)
    yield from _read_batches(iterate_batches(), path, report, "parquet")
    _pass_bytes(path, on_chunk)


def read_arrow(path: Path, report: FaultHandler, on_chunk: ChunkHandler | None) -> Iterator[Row]:
    """Yield the rows of an Arrow file, in the file format or in the stream format."""
    import pyarrow as pa

    def iterate_batches() -> Iterator[pa.RecordBatch]:
        has_footer = read_head(path, 6) == b"ARROW1"
        with open_checked(path) as opened, pa.OSFile(opened) as source:
            if has_footer:
                with pa.ipc.open_file(source) as reader:
                    for index in range(reader.num_record_batches):
                        yield reader.get_batch(index)
            else:
                with pa.ipc.open_stream(source) as reader:
                    yield from reader

    _require_end(path)
    yield from _read_batches(iterate_batches(), path, report, "arrow")
    _pass_bytes(path, on_chunk)


def _require_end(path: Path) -> None:
    """Raise ReadLimitExceeded for a copy of the start alone: the schema is at the end."""
    if is_partial(path):
        raise ReadLimitExceeded(f"{path.name} is too long, and its kind has to be read whole")


def _pass_bytes(path: Path, on_chunk: ChunkHandler | None) -> None:
    """Read the file for its digest: rows are read by column, and from the end.

    Behind the rows: who needs only the first ones reads no more.
    """
    if on_chunk is None:
        return
    with open_checked(path) as opened, open(opened, "rb") as raw:
        while chunk := raw.read(2**20):
            on_chunk(memoryview(chunk))


def _read_batches(
    batches: Iterator[pa.RecordBatch], path: Path, report: FaultHandler, kind: str
) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            class_names = _read_class_names(batch.schema)
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                for values in batch.slice(start, ROWS_AT_ONCE).to_pylist():
                    number += 1
                    yield Row(_convert_values(values, class_names), str(path), number)
    except MemoryError:
        # Arrow's own error too: nothing is known to be wrong with the file.
        raise
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        reason = str(error).split(".")[0].strip()[:200]
        problem = f"invalid or truncated {kind} ({reason})"
        report(Fault(f"{path}:{number + 1}", problem, COPY_AGAIN))


def _read_class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes of each ClassLabel column of the library `datasets`, which
    may hold a list of classes too.
    """
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        features: dict[str, Any] = metadata["info"]["features"]
        inner = {name: _get_item_feature(feature) for name, feature in features.items()}
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in inner.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _convert_values(values: dict[str, Any], class_names: dict[str, list[str]]) -> dict[str, Any]:
    converted = {
        column: _drop_absent(value) for column, value in values.items() if column != PANDAS_INDEX
    }
    for column, names in class_names.items():
        value = converted.get(column)
        if isinstance(value, list):
            converted[column] = [_name_class(number, names) for number in value]
        elif isinstance(value, int):
            converted[column] = _name_class(value, names)
    return converted


def _name_class(number: Any, names: list[str]) -> str | None:
    """Return the name of a class; -1 stands for a label that nobody gave."""
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else None


def _get_item_feature(feature: Any) -> Any:
    """Return the feature of a list's items, or the feature itself."""
    is_list = isinstance(feature, dict) and feature.get("_type") in ("List", "Sequence")
    return feature.get("feature") if is_list else feature


def _drop_absent(value: Any) -> Any:
    """Return the value without null fields: a struct has all fields that any row has."""
    if isinstance(value, dict):
        return {key: _drop_absent(item) for key, item in value.items() if item is not None}
    return [_drop_absent(item) for item in value] if isinstance(value, list) else value
