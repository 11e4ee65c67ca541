"""Resolve the address of a data set to its files, and tell which files are left out and why."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.files import DATA_FILES, SUPPORTED, is_data_file
from jobs.inspect.datasets.folder_walk import (
    SkipHandler,
    describe_absent_file,
    is_hidden,
    walk_folders,
)
from jobs.inspect.datasets.hub import HUB_SCHEME, find_hub_files, parse_hub_address
from jobs.inspect.datasets.readers.raw_bytes import split_suffix
from jobs.inspect.datasets.splits import Side, choose_split, find_split
from jobs.places import boundary
from jobs.spec.address_types import AddressKind
from jobs.store.cache import fetch_files

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
METADATA_FILES = frozenset(
    {"dataset_infos.json", "dataset_dict.json", "state.json", "dataset_info.json"}
)
DOCUMENT_WORDS = frozenset(
    {"readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors",
     "requirements", "contributing"}
)  # fmt: skip
SPLIT_REASON = "split "
"""How the reason begins why a file of another split is left out."""
MAX_FAULT_FILES = 5


@dataclass(frozen=True)
class SkippedFile:
    """A file of a folder that is not read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class FileSelection:
    """The files of a data set, sorted."""

    files: tuple[Path, ...]
    skipped: tuple[SkippedFile, ...] = ()
    warnings: tuple[str, ...] = ()


def get_side(key: str) -> Side:
    """Return the side of the split that the rows of a key of the spec are for."""
    return "train" if key in ("data", "data.train") else "eval"


def resolve_files(address: str, *, key: str = "data") -> tuple[Path, ...]:
    """Return the data files of an address, as `select_files` does."""
    return select_files(address, key=key).files


def select_files(address: str, *, key: str = "data") -> FileSelection:
    """Return the data files, sorted, of a file, glob, folder, file://, s3:// or hub address.

    Of a folder, those of the key's side of the split are selected. Raise InputError if there
    are none, or if they are outside the places of this job's project.
    """
    boundary.check_address(key, address, AddressKind.DATA)
    selection = _select_files(address, key)
    boundary.check_files(key, address, selection.files, AddressKind.DATA)
    return selection


def _select_files(address: str, key: str) -> FileSelection:
    if address.startswith("s3://"):
        return _select_bucket_files(address, key)
    if address.startswith(HUB_SCHEME):
        return _select_hub_files(address, key)
    # A restricted job has no files of its own beside its places: a relative path is a hub id.
    if boundary.is_restricted() and not boundary.is_local_address(address):
        return _select_hub_files(address, key)
    try:
        if selection := _select_local_files(Path(address.removeprefix("file://")), key):
            return selection
    except OSError as error:
        problem = f"{address} can't be read: {error.strerror}"
        raise _make_error(key, problem, "Check its name and its permissions.") from None
    if HUB_ID.fullmatch(address):
        return _select_hub_files(address, key)
    raise _make_error(key, f"file not found: {address}", "Use a file, glob, folder or hub id.")


def _make_error(key: str, problem: str, remedy: str) -> InputError:
    return InputError([Fault(key, problem, remedy)])


def _select_bucket_files(address: str, key: str) -> FileSelection:
    fetched = fetch_files(address, DATA_FILES)
    if [path.name for path in fetched] == [address.rpartition("/")[2]]:
        # A file that is named is data, whatever its name looks like.
        return FileSelection(fetched)
    paths = [path for path in fetched if not is_hidden(path.name) and not _find_reason(path)]
    if not paths:
        raise _make_error(key, f"no data file under {address}", SUPPORTED)
    if len(paths) == 1 or re.search(r"[*?\[]", address):
        return FileSelection(tuple(paths), warnings=_warn_of_splits(paths, address))
    return _select_of_folder(paths, [], _find_root(paths), key, address)


def _select_local_files(path: Path, key: str) -> FileSelection | None:
    if path.is_file():
        return FileSelection((path,))
    if path.is_dir():
        data_files, skipped = _list_folder(path)
        return _select_of_folder(data_files, skipped, path, key, str(path))
    paths, skipped = expand_glob(str(path)), _list_broken_links(str(path))
    if paths:
        warnings = _warn_of_splits(paths, str(path))
        return FileSelection(tuple(paths), tuple(skipped), warnings)
    if skipped:
        raise _make_error(key, f"no data file in {path}", _describe_skipped(skipped))
    return None


def _select_hub_files(address: str, key: str) -> FileSelection:
    hub_address = parse_hub_address(address, key)
    hub_files = find_hub_files(hub_address, key)
    if hub_files.splits is None:
        data_files, skipped = _list_folder(hub_files.folder)
        names = {path: str(path.relative_to(hub_files.folder)) for path in data_files}
    else:
        names, skipped = dict(sorted(hub_files.splits.items())), []
    if hub_address.split is None:
        splits = {path: find_split(Path(name)) for path, name in names.items()}
        return _select_of_side(splits, skipped, key, address)
    files = tuple(path for path, name in names.items() if _has_word(name, hub_address.split))
    if not files:
        problem = f"{address} has no files of the split {hub_address.split}"
        listed = ", ".join(sorted(set(names.values()))[:8]) or "none"
        raise _make_error(key, problem, f"Its files or splits: {listed}.")
    return FileSelection(files)


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", name) is not None


def expand_glob(pattern: str) -> list[Path]:
    return sorted(
        path
        for name in glob.glob(pattern, recursive=True)
        if (path := Path(name)).is_file() and not is_hidden(path.name)
    )


def _list_broken_links(pattern: str) -> list[SkippedFile]:
    """List the links among the names of a pattern that lead nowhere."""
    paths = (Path(name) for name in sorted(glob.glob(pattern, recursive=True)))
    return [
        SkippedFile(path, describe_absent_file(path) or "")
        for path in paths
        if path.is_symlink() and not path.exists() and not is_hidden(path.name)
    ]


def _warn_of_splits(paths: Sequence[Path], address: str) -> tuple[str, ...]:
    splits = sorted({split for path in paths if (split := find_split(Path(path.name)))})
    if len(splits) < 2:
        return ()
    return (f"{address} takes files of several splits ({', '.join(splits)})",)


def _find_root(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _list_folder(folder: Path) -> tuple[list[Path], list[SkippedFile]]:
    """Return the data files of a folder and of those in it, and the files that are none."""
    data_files, skipped = list[Path](), list[SkippedFile]()
    for path in walk_folder(folder, lambda path, reason: skipped.append(SkippedFile(path, reason))):
        if reason := _find_reason(path):
            skipped.append(SkippedFile(path, reason))
        else:
            data_files.append(path)
    is_text = {path: split_suffix(path)[0] == ".txt" for path in data_files}
    if not all(is_text.values()):
        skipped += [
            SkippedFile(path, "text beside other data files")
            for path in data_files
            if is_text[path]
        ]
        data_files = [path for path in data_files if not is_text[path]]
    return data_files, skipped


def walk_folder(folder: Path, on_skip: SkipHandler | None = None) -> Iterator[Path]:
    """Yield the files below a folder in order, but hidden ones, and what macOS adds to archives.

    Links to folders are followed. `on_skip` receives the links that are not, and why.
    """
    for parent, names in walk_folders(folder, on_error=_raise_error, on_skip=on_skip):
        saved_names = _read_saved_names(parent)
        for name in names:
            path = parent / name
            is_other = (
                saved_names is not None and name.endswith(".arrow") and name not in saved_names
            )
            if is_hidden(name) or is_other:
                continue
            if (reason := describe_absent_file(path)) is None:
                yield path
            elif on_skip is not None:
                on_skip(path, reason)


def _raise_error(error: OSError) -> None:
    raise error


def _read_saved_names(folder: Path) -> set[str] | None:
    """Return the names of the files of a data set that `save_to_disk` wrote, without its caches."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return {str(item["filename"]) for item in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _find_reason(path: Path) -> str | None:
    """Return why a file of a folder is not read, or None if it is."""
    name = path.name.lower()
    if name in METADATA_FILES:
        return "metadata of the data set"
    if set(re.split(r"[^a-z]+", name)) & DOCUMENT_WORDS and not name.endswith(".parquet"):
        return "documentation"
    return None if is_data_file(path) else "not a kind of data file"


def _select_of_folder(
    data_files: list[Path], skipped: list[SkippedFile], folder: Path, key: str, address: str
) -> FileSelection:
    splits = {path: find_split(path.relative_to(folder)) for path in data_files}
    return _select_of_side(splits, skipped, key, address)


def _select_of_side(
    splits: Mapping[Path, str | None], skipped: list[SkippedFile], key: str, address: str
) -> FileSelection:
    """Select the files of the key's side of the split."""
    if not splits:
        raise _make_error(key, f"no data file in {address}", _describe_skipped(skipped))
    has_files, split = choose_split(splits.values(), get_side(key))
    if not has_files:
        names = ", ".join(sorted({str(name) for name in splits.values()}))
        problem = f"{address} has no rows for {key}, only of the split {names}"
        raise _make_error(key, problem, f"Name the files: {next(iter(splits))}, or a glob.")
    others = [
        SkippedFile(path, f"{SPLIT_REASON}{name}" if name else f"its name has no {split}")
        for path, name in splits.items()
        if name != split
    ]
    files = tuple(path for path, name in splits.items() if name == split)
    return FileSelection(files, (*skipped, *others))


def _describe_skipped(skipped: Sequence[SkippedFile]) -> str:
    names = [f"{item.path.name} ({item.reason})" for item in skipped[:MAX_FAULT_FILES]]
    return f"{SUPPORTED} Left out: {', '.join(names)}." if names else SUPPORTED
