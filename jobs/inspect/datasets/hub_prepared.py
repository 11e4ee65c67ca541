"""Find a data set of the hub that the library `datasets` has prepared in its own cache.

<HF_DATASETS_CACHE>/<org>___<name>/<configuration>/<version>/<hash>/<name>-<split>[-i-of-n].arrow
                                                                   /dataset_info.json
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

INFO = "dataset_info.json"
SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def get_prepared_cache() -> Path:
    """Return the folder in which `datasets` keeps what it has prepared."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface"
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets")


def list_prepared_configs(name: str) -> dict[str, Path]:
    """Return the newest folder of each configuration of a data set, by the configuration's name."""
    configs = dict[str, Path]()
    for folder in _list_folders(get_prepared_cache()):
        if _normalize(folder.name) == _normalize(name.replace("/", "___")):
            infos = sorted(folder.glob(f"*/*/*/{INFO}"), key=lambda path: path.stat().st_mtime)
            configs |= {_read_config_name(path): path.parent for path in infos}
    return configs


def list_prepared_splits(folder: Path) -> dict[Path, str]:
    """Return the files of a prepared configuration with the names of their splits."""
    splits = dict[Path, str]()
    for path in sorted(folder.glob("*.arrow")):
        _, dash, split = SHARD.sub("", path.stem).rpartition("-")
        if dash and not path.name.startswith(("cache-", "tmp")):
            splits[path] = split
    return splits


def _list_folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []


def _normalize(name: str) -> str:
    """Return a name without what `datasets` changes: capitals, and underscores between words."""
    return "/".join(part.replace("_", "").replace("-", "") for part in name.lower().split("___"))


def _read_config_name(path: Path) -> str:
    """Return the configuration's name in its description, or that of its folder."""
    try:
        name = json.loads(path.read_bytes()).get("config_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        name = None
    return name if isinstance(name, str) else path.parents[2].name
