"""Data sets of the Hugging Face hub: `hf://name`, with a configuration and a split if needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.hub_prepared import list_prepared_configs, list_prepared_splits

HUB_SCHEME = "hf://"
HUB_FORM = "hf://org/name@revision?config=NAME&split=NAME"
OPTIONS = ("config", "split")
MAX_CARD_BYTES = 2**20
DATA_PATTERNS = ("*.json*", "*.ndjson*", "*.csv*", "*.tsv*", "*.txt*", "*.parquet", "*.arrow",
                 "README.md")  # fmt: skip
"""Files that are downloaded of a data set: no code."""

_NAME = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)


@dataclass(frozen=True)
class HubAddress:
    """A data set of the hub, as the spec names it."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    may_download: bool = False
    """Whether the hub is asked for what the cache does not have: not for a mere name, which may be
    a mistyped path."""


@dataclass(frozen=True)
class HubFiles:
    """A data set in the local cache."""

    folder: Path
    splits: dict[Path, str] | None = None
    """Files by name of their split, if the data set's card lists them."""


def parse_hub_address(address: str, key: str) -> HubAddress:
    """Return the parts of `hf://org/name@revision?config=NAME&split=NAME`. Raise InputError."""
    place, _, query = address.removeprefix(HUB_SCHEME).partition("?")
    name, _, revision = place.removeprefix("datasets/").rstrip("/").partition("@")
    options = parse_qsl(query, keep_blank_values=True)
    problem = _find_option_problem(options) or _find_part_problem(name, revision, dict(options))
    if problem:
        problem = f"{address[:200]!a} is not an address of a data set: {problem}"
        raise InputError([Fault(key, problem, f"Use {HUB_FORM}; all but the name is optional.")])
    values = dict(options)
    return HubAddress(
        name=name,
        revision=revision or None,
        config=values.get("config"),
        split=values.get("split"),
        may_download=address.startswith(HUB_SCHEME),
    )


def _find_option_problem(options: list[tuple[str, str]]) -> str | None:
    names = [name for name, _ in options]
    for name, value in options:
        if name not in OPTIONS:
            return f"{name[:60]!a} is not one of its options, {' and '.join(OPTIONS)}"
        if not value:
            return f"its {name} has no value"
        if names.count(name) > 1:
            return f"it has several values of {name}"
    return None


def _find_part_problem(name: str, revision: str, options: dict[str, str]) -> str | None:
    """Return what is wrong with a name, or with a part that would lead out of its folder."""
    if not _NAME.fullmatch(name) or ".." in name:
        return f"{name[:100]!a} is not the name of one"
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        return f"{revision[:100]!a} is not a revision"
    if (config := options.get("config", "")) in (".", "..") or "/" in config:
        return f"{config[:100]!a} is not a configuration"
    return None


def find_hub_files(address: HubAddress, key: str) -> HubFiles:
    """Return the local folder of a data set, and its configuration's files if its card lists them.

    The hub is asked only for what neither its cache nor that of `datasets` has, and not with
    HF_HUB_OFFLINE set.
    """
    folder = _find_snapshot(address)
    if folder is None and (prepared := _find_prepared(address, key)) is not None:
        return prepared
    folder = folder or _download_snapshot(address, key)
    configs = _read_configs(folder)
    if not configs:
        return HubFiles(_find_config_folder(folder, address, key))
    names = [str(config.get("config_name", "default")) for config in configs]
    config = _choose_config(configs, names, address)
    if config is None:
        problem = f"{address.name} has the configurations {', '.join(names)}"
        example = f"{HUB_SCHEME}{address.name}?config={names[0]}"
        raise InputError([Fault(key, problem, f"Select one: {example}.")])
    if config.get("data_files") is None:
        data_dir = str(config.get("data_dir") or "")
        return HubFiles(folder / data_dir if _is_inside(data_dir) else folder)
    splits = {
        path: split
        for split, pattern in _list_patterns(config["data_files"], "train")
        if _is_inside(pattern)
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    return HubFiles(folder, splits)


def _fetch_snapshot(address: HubAddress, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            address.name,
            repo_type="dataset",
            revision=address.revision,
            local_files_only=local,
            allow_patterns=None if local else list(DATA_PATTERNS),
        )
    )


def _find_snapshot(address: HubAddress) -> Path | None:
    try:
        return _fetch_snapshot(address, local=True)
    except (OSError, ValueError):
        return None


def _find_prepared(address: HubAddress, key: str) -> HubFiles | None:
    """Return what the library `datasets` has prepared, or None. Raise InputError if it is several
    configurations and the address selects none.
    """
    if address.revision is not None:
        # It is not told which revision was prepared.
        return None
    configs = list_prepared_configs(address.name)
    if address.config is not None or len(configs) == 1:
        folder = configs.get(address.config or next(iter(configs)))
        return None if folder is None else HubFiles(folder, list_prepared_splits(folder))
    if not configs:
        return None
    problem = f"{address.name} was prepared in the configurations {', '.join(sorted(configs))}"
    example = f"{HUB_SCHEME}{address.name}?config={min(configs)}"
    raise InputError([Fault(key, problem, f"Select one: {example}.")])


def _download_snapshot(address: HubAddress, key: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    is_offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1"
    reason = ""
    if address.may_download and not is_offline:
        try:
            return _fetch_snapshot(address, local=False)
        except (OSError, ValueError, HfHubHTTPError) as error:
            reason = f" ({str(error).splitlines()[0][:200]})" if str(error) else ""
    problem = f"neither a file nor a data set in the local hub cache: {address.name}{reason}"
    revision = f" --revision {address.revision}" if address.revision else ""
    remedy = f"Download it first: hf download --repo-type dataset {address.name}{revision}"
    raise InputError([Fault(key, problem, remedy)])


def _read_configs(folder: Path) -> list[dict[str, Any]]:
    """Return the configurations in the header of the data set's card."""
    try:
        with (folder / "README.md").open(encoding="utf-8") as file:
            text = file.read(MAX_CARD_BYTES)
        header = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError, RecursionError):
        return []
    configs = header.get("configs") if isinstance(header, dict) else None
    return [item for item in configs if isinstance(item, dict)] if isinstance(configs, list) else []


def _choose_config(
    configs: list[dict[str, Any]], names: list[str], address: HubAddress
) -> dict[str, Any] | None:
    if address.config is not None:
        return configs[names.index(address.config)] if address.config in names else None
    if len(configs) == 1:
        return configs[0]
    defaults = [
        config
        for config, name in zip(configs, names, strict=True)
        if config.get("default") is True or name == "default"
    ]
    return defaults[0] if len(defaults) == 1 else None


def _list_patterns(data_files: Any, split: str) -> Iterator[tuple[str, str]]:
    """Yield split and glob of a configuration's files, which a card gives in one of four forms."""
    if isinstance(data_files, str):
        yield split, data_files
    elif isinstance(data_files, dict):
        for name, paths in data_files.items():
            yield from _list_patterns(paths, str(name))
    elif isinstance(data_files, list):
        for item in data_files:
            if isinstance(item, dict):
                yield from _list_patterns(item.get("path"), str(item.get("split", split)))
            else:
                yield from _list_patterns(item, split)


def _is_inside(pattern: str) -> bool:
    """Return whether a path of a card stays in its folder."""
    return bool(pattern) and not pattern.startswith("/") and ".." not in Path(pattern).parts


def _find_config_folder(folder: Path, address: HubAddress, key: str) -> Path:
    if address.config is None:
        return folder
    candidate = folder / address.config
    if Path(address.config).name == address.config and candidate.is_dir():
        return candidate
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    problem = f"{address.name} has no configuration {address.config}"
    raise InputError([Fault(key, problem, f"Its folders: {', '.join(names) or 'none'}.")])
