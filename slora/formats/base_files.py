"""The files that make a base, and the digest over them. No torch.

A run records the digest in its manifest; a server of the base computes it again. Both must find the
same files, so both call this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
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


def list_weight_files(folder: Path) -> list[Path]:
    """List the files that transformers loads: model.safetensors, or those that the index names.

    Others are copies in another layout (`consolidated.safetensors`). A file may be missing.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    try:
        return [folder / name for name in read_weight_index(folder)]
    except ValueError:
        return sorted(folder.glob("*.safetensors"))


def read_weight_index(folder: Path) -> list[str]:
    """Return the names of the files in the index, in order. Raise ValueError."""
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (OSError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("it has no weight_map") from error
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"it names {name!r}, which is not a file of this folder")
    return names


def list_base_files(folder: Path) -> list[Path]:
    """List the files that make a base: all that are loaded from its folder. Some may be missing."""
    files = {folder / CONFIG, *list_weight_files(folder)}
    if folder.is_dir():
        files |= {path for path in folder.iterdir() if _is_loaded(path)}
        files |= set((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    return sorted(files)


def combine_digests(files: Iterable[tuple[str, int, str]]) -> str:
    """Return the digest of a set of files, each a name, a size in bytes and a SHA-256."""
    rows = sorted([name, size, sha256] for name, size, sha256 in files)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file. Raise OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, paths: Iterable[Path]) -> str:
    """Return the combined digest of files of a folder, by their paths in it. Raise OSError."""
    return combine_digests(
        (path.relative_to(folder).as_posix(), path.stat().st_size, digest_file(path))
        for path in paths
    )


def _is_loaded(path: Path) -> bool:
    name = path.name
    if name.startswith(".") or name in REPORTS or not path.is_file():
        return False
    if name.endswith(".index.json"):
        # The index of weights in another layout, or of weights that are in one file here.
        return name == INDEX and not (path.parent / WEIGHTS).is_file()
    return name.endswith(LOADED_SUFFIXES) or name in LOADED_TEXTS
