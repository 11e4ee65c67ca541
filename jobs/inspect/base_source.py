"""The source of a base model: where others find what a run read from this machine's disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BaseSource:
    """Where a base comes from."""

    path: str
    """A hub id, an s3:// URL or a folder."""
    revision: str | None = None
    """The commit of a hub id."""


def find_base_source(path: str, folder: Path) -> BaseSource:
    """Return the source of a base: `path` as in the spec, and the folder that it was read from.

    A hub id and an s3:// URL stay, because others find the base by them too; a folder does so only
    on this machine. The commit of a hub id is the name of its snapshot in the cache.
    """
    if path.startswith("s3://"):
        return BaseSource(path)
    if folder.parent.parts[-2:] == (f"models--{path.replace('/', '--')}", "snapshots"):
        return BaseSource(path, folder.name)
    return BaseSource(str(folder))
