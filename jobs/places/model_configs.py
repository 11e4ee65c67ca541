"""Refuse the configuration of a model that names files outside its folder.

A library may read a vocabulary or a backbone from where a JSON file of the model says, and save it
with the adapter. Which key it follows depends on its version: all of them are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError
from jobs.places.boundary import is_restricted

MAX_BYTES = 4 << 20
"""Configurations are smaller. Vocabularies and indices are larger, and name no files."""
CONTENT_FILES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})
ORIGINS = frozenset({"_name_or_path", "name_or_path"})
"""Keys that tell where a model was saved from; nothing is read there."""

_FILE_KEY = re.compile(r"(?:_files?|_paths?|_dir|_folder|name_or_path|backbone|checkpoint)$")


def check_model_configs(folder: Path) -> None:
    """Raise InputError if a restricted process would read a file that a configuration names."""
    if not is_restricted():
        return
    faults = [fault for path in sorted(folder.glob("*.json")) for fault in _check_config(path)]
    if faults:
        raise InputError(faults)


def _check_config(path: Path) -> Iterator[Fault]:
    if path.name in CONTENT_FILES or path.name.endswith(".index.json"):
        return
    try:
        if path.stat().st_size > MAX_BYTES:
            problem = f"{path.name} is larger than {MAX_BYTES >> 20} MiB, which no configuration is"
            yield Fault("model.path", problem, "Remove the file.")
            return
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # the inspection of the model reports it
    for key in _list_outside_keys(values):
        problem = f"{path.name} names a file outside the model's folder: {key[:100]!a}"
        yield Fault("model.path", problem, f"Remove {key[:100]} from {path.name}.")


def _list_outside_keys(values: Any) -> Iterator[str]:
    """Yield the keys whose values lead out of a folder, at any depth."""
    pending = [values]
    while pending:
        value = pending.pop()
        pending += value if isinstance(value, list) else []
        if not isinstance(value, dict):
            continue
        for key, item in value.items():
            pending.append(item)
            texts = item if isinstance(item, list) else [item]
            is_file_key = _FILE_KEY.search(key) and key not in ORIGINS
            if is_file_key and any(isinstance(text, str) and _leads_out(text) for text in texts):
                yield key


def _leads_out(text: str) -> bool:
    return text.startswith(("/", "~")) or ".." in Path(text).parts or "://" in text
