"""Tell bases apart by a digest of every file that is loaded: config, weights, tokenizer, templates.

The digest is that of the files' names, sizes and digests, which a manifest records beside it, so
that a message can name the file that differs. Manifests of earlier releases have the digest of
config.json and the weights alone; they are compared by that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.inspect.weight_files import INDEX, WEIGHTS, list_weight_files
from jobs.store.adapters.manifest import BaseFile, BaseRecord
from jobs.store.digest import compute_file_sha256

CONFIG = "config.json"
LOADED_SUFFIXES = (".json", ".model", ".jinja", ".spm", ".tiktoken")
"""Files beside the weights: tokenizers, templates, configs of generation and of processors."""
LOADED_TEXTS = ("vocab.txt", "merges.txt", "dict.txt", "bpe.codes")
TEMPLATE_FOLDER = "additional_chat_templates"
REPORTS = (
    "all_results.json",
    "eval_results.json",
    "test_results.json",
    "train_results.json",
    "trainer_state.json",
)
"""Written by trainers beside a model; nothing loads them."""


@dataclass(frozen=True)
class BaseDigest:
    """The digest of a base, and its files."""

    digest: str
    files: tuple[BaseFile, ...]


def list_base_files(folder: Path) -> list[Path]:
    """List the files that make a base: all that are loaded from its folder. Some may be missing."""
    files = {folder / CONFIG, *list_weight_files(folder)}
    if folder.is_dir():
        files |= {path for path in folder.iterdir() if _is_loaded(path)}
        files |= set((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    return sorted(files)


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
    return BaseDigest(_combine_digests(files), files)


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


def _is_loaded(path: Path) -> bool:
    name = path.name
    if name.startswith(".") or name in REPORTS or not path.is_file():
        return False
    if name.endswith(".index.json"):
        # The index of weights in another layout, or of weights that are in one file here.
        return name == INDEX and not (path.parent / WEIGHTS).is_file()
    return name.endswith(LOADED_SUFFIXES) or name in LOADED_TEXTS


def _combine_digests(files: Iterable[BaseFile]) -> str:
    rows = sorted([file.name, file.size, file.sha256] for file in files)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


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
