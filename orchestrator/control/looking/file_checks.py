"""Check files before a look opens any: their places, their kinds, and who may read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import Fault, InputError, JobsError
from jobs.inspect.datasets.file_selection import HUB_ID
from jobs.inspect.datasets.folder_walk import walk_folders
from jobs.inspect.datasets.hub import HUB_SCHEME, find_hub_files, parse_hub_address
from jobs.inspect.model_folder import find_model_folder
from jobs.places.boundary import check_address
from jobs.places.places import S3
from jobs.spec.address_types import AddressKind

WEIGHTS_SUFFIX = ".safetensors"
STATE_FILE = "state.json"
"""The only file of a folder of data that is read whole, and whatever its kind."""


class NotChecked(JobsError):
    """A look cannot tell whether the files are right."""


def check_data(key: str, location: str, max_bytes: int, *, must_read: bool = True) -> None:
    """Check the files of a data set.

    Raise InputError if they are outside of the places of this process, and NotChecked if its user
    may not read them; without `must_read`, if it may not see them.
    """
    _check_places(key, location, AddressKind.DATA)
    if location.startswith(S3):
        return
    path = location.removeprefix("file://")
    if _is_hub_address(location):
        if must_read:
            _require_hub_data(key, location)
        return
    for entry in _list_files(path):
        if must_read:
            _require_readable(entry)
        if os.path.basename(entry) == STATE_FILE:
            _check_small_file(entry, max_bytes)


def check_model(location: str, max_bytes: int) -> None:
    """Check the files of a model. Raise InputError or NotChecked as `check_data` does."""
    _check_places("model.path", location, AddressKind.MODEL)
    if _is_hub_id(location):
        folder = find_model_folder(location)
        if folder is None:
            raise NotChecked(f"{location} is not in a hub cache that the service can read")
        path = str(folder)
    else:
        path = location
    if path.startswith(S3):
        return
    for entry in _list_folder(path):
        _require_readable(entry)
        if not stat.S_ISREG(os.stat(entry).st_mode):
            problem = f"{entry} is neither a file nor a folder"
            raise InputError([Fault("model.path", problem, "Remove it from the model's folder.")])
        if not entry.endswith(WEIGHTS_SUFFIX):
            _check_small_file(entry, max_bytes)


def check_access(path: str) -> None:
    """Raise NotChecked if this user may not know whether the path exists."""
    try:
        os.stat(path)
    except PermissionError as error:
        raise _make_access_error(path) from error
    except (OSError, ValueError):
        return  # absent: whoever reads it reports that


def _check_places(key: str, location: str, kind: AddressKind) -> None:
    try:
        check_address(key, location, kind)
    except OSError as error:
        # A folder that this user may not list: the user of the job perhaps may.
        raise _make_access_error(location) from error


def _is_hub_id(location: str) -> bool:
    return HUB_ID.fullmatch(location) is not None


def _is_hub_address(location: str) -> bool:
    return location.startswith(HUB_SCHEME) or _is_hub_id(location)


def _require_hub_data(key: str, location: str) -> None:
    try:
        find_hub_files(parse_hub_address(location, key), key)
    except InputError as error:
        raise NotChecked(f"{location} is not in a hub cache that the service can read") from error


def _list_files(path: str) -> Iterator[str]:
    """Yield the path itself, or the files of a folder and of the folders that its reader walks."""
    check_access(path)
    if os.path.isdir(path):
        for parent, names in walk_folders(Path(path), on_error=_refuse_access, with_hidden=True):
            yield from (os.path.join(parent, name) for name in names)
    elif os.path.exists(path):
        yield path


def _list_folder(path: str) -> Iterator[str]:
    folder = os.path.expanduser(path)
    check_access(folder)
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entry.path for entry in entries if not entry.is_dir())
    except PermissionError as error:
        raise _make_access_error(folder) from error
    except OSError:
        return  # absent: whoever reads it reports that


def _require_readable(path: str) -> None:
    check_access(path)
    if os.path.exists(path) and not os.access(path, os.R_OK):
        raise _make_access_error(path)


def _check_small_file(path: str, max_bytes: int) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise NotChecked(f"{path} is not a regular file")
    if status.st_size > max_bytes:
        raise NotChecked(f"{path} has {status.st_size:,} bytes, more than {max_bytes:,}")


def _refuse_access(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise _make_access_error(str(error.filename)) from error


def _make_access_error(path: str) -> NotChecked:
    return NotChecked(f"{path} may not be read by the user that looks at it")
