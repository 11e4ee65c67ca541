"""Tell bases apart by a digest of every file that is loaded: config, weights, tokenizer, templates.

The digest is that of the files' names, sizes and digests, which a manifest records beside it, so
that a message can name the file that differs. Manifests of earlier releases have the digest of
config.json and the weights alone; they are compared by that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.store.adapters.manifest import BaseFile, BaseRecord
from jobs.store.digest import compute_file_sha256
from slora.formats.base_files import CONFIG, combine_digests, list_base_files, list_weight_files

__all__ = [
    "BaseDigest",
    "digest_base",
    "digest_model",
    "digest_weights",
    "find_base_change",
    "list_base_files",
]


@dataclass(frozen=True)
class BaseDigest:
    """The digest of a base, and its files."""

    digest: str
    files: tuple[BaseFile, ...]


def digest_base(folder: Path) -> BaseDigest:
    """Return the digest of a base and of each of its files. Raise OSError if one is missing."""
    files = tuple(
        BaseFile(
            name=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=compute_file_sha256(path),
        )
        for path in list_base_files(folder)
    )
    return BaseDigest(combine_digests((file.name, file.size, file.sha256) for file in files), files)


def digest_model(folder: Path) -> str:
    """Return the digest of a base alone."""
    return digest_base(folder).digest


def digest_weights(folder: Path) -> str:
    """Return the digest of earlier releases: over the names and bytes of config.json and the
    weights.
    """
    sha256 = hashlib.sha256()
    for path in sorted([folder / CONFIG, *list_weight_files(folder)]):
        sha256.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def find_base_change(record: BaseRecord, folder: Path) -> str | None:
    """Return how a folder differs from the recorded base, in words, or None. Raise OSError."""
    if record.files is None:
        digest = digest_weights(folder)
        if digest == record.digest:
            return None
        return f"its digest is {digest[:12]}, not {record.digest[:12]}"
    present = digest_base(folder)
    if present.digest == record.digest:
        return None
    return _describe_change(record.files, present.files) or (
        f"its digest is {present.digest[:12]}, not {record.digest[:12]}"
    )


def _describe_change(recorded: Iterable[BaseFile], present: Iterable[BaseFile]) -> str:
    """Name the first file that differs, and count the others."""
    before, after = ({file.name: file.sha256 for file in files} for files in (recorded, present))
    names = [
        name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)
    ]
    if not names:
        return ""
    first = names[0]
    change = "differs" if first in before and first in after else "was added"
    change = change if first in after else "is missing"
    rest = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{first} {change}{rest}"
