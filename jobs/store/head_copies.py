"""Copies of the starts of objects, for a process that may read little of a bucket.

Such a process has SLORA_HEAD_BYTES. It reads ranges into temporary files and writes nothing to the
shared cache. Who reads a copy to its end must know that the object goes on: see `is_partial`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jobs.errors import ReadLimitExceeded
from jobs.store.adapters.safetensors_header import MAX_HEADER_BYTES
from jobs.store.base import ObjectStore
from jobs.store.cache_item import CacheItem

WEIGHTS_SUFFIX = ".safetensors"
FIRST_BYTES = 2**18
"""Holds most headers of weights: those of a layer's tensors take about 10 KB."""
MIN_SHARE = 2**16

_object_sizes = dict[Path, int]()
"""The sizes of the objects of which this process has copied the start only."""


def is_partial(path: Path) -> bool:
    """Return whether the file is a copy of the start of a longer object."""
    return path in _object_sizes


def get_object_size(path: Path) -> int | None:
    """Return the size of the object of which the file is the start; None for any other file."""
    return _object_sizes.get(path)


def copy_data_heads(store: ObjectStore, items: Sequence[CacheItem], limit: int) -> Path:
    """Copy the start of each object, all of equal length at most. Return their folder.

    Raise ReadLimitExceeded if there are too many.
    """
    share = limit // len(items)
    if share < MIN_SHARE:
        problem = f"{len(items)} objects under {store.url('')}"
        raise ReadLimitExceeded(f"{problem}: their starts take more than {limit:,} bytes")
    return _copy_all_data(store.url(""), _Objects(store, tuple(items)), share)


def copy_model_heads(store: ObjectStore, items: Sequence[CacheItem], limit: int) -> Path:
    """Copy the headers of the weights, and the other files whole. Return their folder.

    Raise ReadLimitExceeded if they are longer than the limit together.
    """
    return _copy_model(store.url(""), _Objects(store, tuple(items)), limit)


class _Objects:
    """Objects of a store, which are the same for the same names, sizes and etags."""

    def __init__(self, store: ObjectStore, items: tuple[CacheItem, ...]) -> None:
        self.store, self.items = store, items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Objects) and self.items == other.items

    def __hash__(self) -> int:
        return hash(self.items)


@cache
def _copy_all_data(_url: str, objects: _Objects, share: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="heads-"))
    for item in objects.items:
        data = objects.store.read(item.key, 0, min(share, item.size)) if item.size else b""
        _write_head(folder, item, data)
    return folder


@cache
def _copy_model(url: str, objects: _Objects, limit: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="heads-"))
    for item in objects.items:
        length = FIRST_BYTES if item.name.endswith(WEIGHTS_SUFFIX) else item.size
        limit -= min(length, item.size)
        if limit >= 0:
            data = objects.store.read(item.key, 0, length) if item.size else b""
            rest = _measure_header(data) - len(data) if length == FIRST_BYTES else 0
            limit -= max(0, rest)
        if limit < 0:
            raise ReadLimitExceeded(f"the small files and the headers of {url} are too long")
        if rest > 0:
            data += objects.store.read(item.key, len(data), rest)
        _write_head(folder, item, data)
    return folder


def _measure_header(start: bytes) -> int:
    """Return the bytes up to the end of the header; those that are known if no reader takes it."""
    length = 8 + int.from_bytes(start[:8], "little")
    return length if length <= MAX_HEADER_BYTES else len(start)


def _write_head(folder: Path, item: CacheItem, data: bytes) -> None:
    path = folder / item.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if len(data) < item.size:
        _object_sizes[path] = item.size
