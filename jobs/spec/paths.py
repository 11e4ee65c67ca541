"""Relative paths of a spec made absolute: Ray runs a job in another directory than its user's."""

from __future__ import annotations

import os
from typing import TypeVar

from jobs.inspect.datasets.file_selection import HUB_ID
from jobs.places.boundary import is_restricted
from jobs.spec.schema import RunSpec

SpecT = TypeVar("SpecT", bound=RunSpec)


def make_paths_absolute(spec: SpecT) -> SpecT:
    """Return the spec with absolute paths of its model, rows and store."""
    data_paths = {
        key: _resolve_path(value)
        for key in ("train", "eval")
        if (value := getattr(spec.data, key)) is not None
    }
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"path": _resolve_path(spec.model.path)}),
            "data": spec.data.model_copy(update=data_paths),
            "store": _resolve_store(spec.store),
        }
    )


def _resolve_path(path: str) -> str:
    """Make a path absolute; leave URLs as they are, and hub ids unless a file has their name."""
    bare = path.removeprefix("file://")
    # A restricted job has no files of its own beside its places: a relative path is a hub id.
    is_hub_id = HUB_ID.fullmatch(bare) and (is_restricted() or not os.path.exists(bare))
    return bare if is_hub_id or "://" in bare else _expand_path(bare)


def _resolve_store(url: str) -> str:
    """Make a folder absolute, as a file:// URL; leave URLs without a folder to open_store."""
    scheme, slashes, folder = url.partition("://")
    if slashes:
        return f"file://{_expand_path(folder)}" if folder and scheme.lower() == "file" else url
    return url if url.lower().startswith("file:") else f"file://{_expand_path(url)}"


def _expand_path(path: str) -> str:
    # Not pathlib, which raises for the home of an unknown user.
    expanded = os.path.expanduser(path)
    return expanded if os.path.isabs(expanded) else os.path.abspath(expanded)
