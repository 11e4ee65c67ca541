"""Find the folder of a base, and read its config. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jobs.errors import Fault
from jobs.places import boundary
from jobs.places.model_configs import check_model_configs
from jobs.spec.address_types import AddressKind
from jobs.store.cache import fetch_folder

MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".spm", ".tiktoken", ".codes")
"""Files that are downloaded from a model's folder in a bucket: no pickles, no code."""
CONV1D = ("gpt2", "openai-gpt")
"""Models with transformers' Conv1D layers, whose weights are stored as [in, out]."""


def find_model_folder(path: str, revision: str | None = None) -> Path | None:
    """Find the folder of `model.path`: a folder, or the cache of an s3:// URL or of the hub.

    `revision`: the commit of a hub id, the newest one in the cache by default. Raise InputError if
    it is outside the places of this job's project, or if its files name others that are.
    """
    boundary.check_address("model.path", path, AddressKind.MODEL)
    folder = _find_folder(path, revision)
    if folder is not None:
        check_model_configs(folder)
    return folder


def _find_folder(path: str, revision: str | None) -> Path | None:
    if path.startswith("s3://"):
        return fetch_folder(path, MODEL_FILES)
    # Not pathlib, which raises for a name that is too long and for a home that is not known.
    folder = os.path.expanduser(path)
    is_local = not boundary.is_restricted() or boundary.is_local_address(path)
    if is_local and os.path.isdir(folder):
        return Path(folder).resolve()
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return _find_in_hub_cache(path, revision)
    return None


def read_config(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return the contents of config.json, or the reason why it cannot be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        remedy = "Use a model folder written by `save_pretrained`."
        return {}, [Fault("model.path", f"{path} cannot be read ({error})", remedy)]
    return config, []


def has_conv1d(path: str, revision: str | None = None) -> bool:
    """Return whether the base has Conv1D layers; False if its folder does not exist."""
    folder = find_model_folder(path, revision)
    return folder is not None and read_config(folder)[0].get("model_type") in CONV1D


def _find_in_hub_cache(hub_id: str, revision: str | None) -> Path | None:
    # Imported here: it takes a third of a second, which only a hub id needs.
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
