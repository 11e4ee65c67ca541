"""Hold a process to the places of a project, after links are resolved.

The service names them in SLORA_PLACES for each job that it starts; without them nothing is
restricted. Every file outside is refused in one sentence, whether it exists or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from jobs.errors import Fault, InputError
from jobs.places.places import HUB, PROBLEM, REMEDY, S3, Places, is_inside
from jobs.spec.address_keys import list_addresses
from jobs.spec.address_types import AddressKind
from jobs.spec.schema import RunSpec
from jobs.store.settings import read_store_settings

VARIABLE = "SLORA_PLACES"
"""The places of a job's project, as JSON."""

_places: ContextVar[tuple[Places | None] | None] = ContextVar("places", default=None)


@contextmanager
def restrict_places(places: Places | None) -> Iterator[None]:
    """Restrict this thread to the places inside the block; None lifts every restriction."""
    token = _places.set((places,))
    try:
        yield
    finally:
        _places.reset(token)


def make_environment(places: Places | None) -> dict[str, str]:
    """Return the variables that restrict a job to the places."""
    return {} if places is None else {VARIABLE: places.model_dump_json()}


def get_places(environment: Mapping[str, str] | None = None) -> Places | None:
    """Return the places of this thread or process; None if nothing is restricted.

    Raise InputError if SLORA_PLACES cannot be read.
    """
    if (current := _places.get()) is not None:
        return current[0]
    text = (os.environ if environment is None else environment).get(VARIABLE)
    return None if text is None else _parse_places(text)


def check_spec(spec: RunSpec) -> None:
    """Raise InputError with a fault for each address of the spec outside the places."""
    places = get_places()
    if places is None:
        return
    faults = (places.find_fault(item.key, item.text, item.kind) for item in list_addresses(spec))
    if found := [fault for fault in faults if fault is not None]:
        raise InputError(found)


def check_address(key: str, address: str, kind: AddressKind) -> None:
    """Raise InputError unless a run may read the address, and everything that its links lead to.

    Of a folder and a glob every link is checked: the answer must not depend on what it leads to.
    """
    places = get_places()
    if places is None:
        return
    if (fault := places.find_fault(key, address, kind)) is not None:
        raise InputError([fault])
    if is_local_address(address):
        _check_links(places, key, address.removeprefix("file://"), kind)


def check_files(key: str, address: str, files: tuple[Path, ...], kind: AddressKind) -> None:
    """Check the files of an address again on the machine that is to read them."""
    places = get_places()
    if places is not None and is_local_address(address):
        for file in files:
            _check_real_path(places, key, str(file), kind)


def is_local_address(address: str) -> bool:
    """Return whether an address names files of this machine, if only places can be read."""
    return address.startswith(("/", "file://"))


def is_restricted() -> bool:
    """Return whether this thread or process may only read the places of a project."""
    return get_places() is not None


@contextmanager
def open_checked(path: Path) -> Iterator[str]:
    """Yield a path to the file that is open, and that is inside: it cannot be swapped for a link.

    Without places it is the path itself. Raise InputError.
    """
    places = get_places()
    if places is None:
        yield str(path)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        opened = f"/proc/self/fd/{descriptor}"
        if not any(is_inside(str(path), root) for root in _list_caches()):
            _check_real_path(places, "data", opened, AddressKind.DATA)
        yield opened
    finally:
        os.close(descriptor)


@lru_cache(maxsize=8)
def _parse_places(text: str) -> Places:
    try:
        return Places.model_validate_json(text)
    except ValidationError as error:
        problem = f"not the places of a project ({error.error_count()} errors)"
        remedy = "Only the service sets it: do not set it yourself."
        raise InputError([Fault(VARIABLE, problem, remedy)]) from error


def _check_links(places: Places, key: str, path: str, kind: AddressKind) -> None:
    fixed, depth = _split_pattern(path)
    _check_real_path(places, key, fixed, kind)
    folders, checked = [(fixed, 0)], set[str]()
    while folders:
        folder, level = folders.pop()
        if (real := os.path.realpath(folder)) in checked or not os.path.isdir(folder):
            continue
        checked.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    _check_real_path(places, key, entry.path, kind)
                if (depth is None or level + 1 < depth) and entry.is_dir():
                    folders.append((entry.path, level + 1))


def _split_pattern(path: str) -> tuple[str, int | None]:
    """Return the folder in front of a pattern, and how many levels below it can match."""
    names = path.split("/")
    index = next((i for i, name in enumerate(names) if any(c in name for c in "*?[")), None)
    if index is None or os.path.lexists(path):
        return path, None
    rest = names[index:]
    return "/".join(names[:index]) or "/", None if "**" in rest else len(rest)


def _check_real_path(places: Places, key: str, path: str, kind: AddressKind) -> None:
    real = os.path.realpath(path)
    if not _resolve_places(places).contains(real, kind):
        raise InputError([Fault(key, PROBLEM, REMEDY)])


@lru_cache(maxsize=8)
def _resolve_places(places: Places) -> Places:
    """Return the places with the links in their own paths resolved."""

    def resolve(place: str) -> str:
        is_path = not place.startswith((HUB, S3)) and place
        return os.path.realpath(place.removeprefix("file://")) if is_path else place

    return Places.model_construct(
        data=None if places.data is None else tuple(map(resolve, places.data)),
        models=None if places.models is None else tuple(map(resolve, places.models)),
        store=resolve(places.store),
        closed=tuple(map(resolve, places.closed)),
    )


def _list_caches() -> tuple[str, ...]:
    """List the folders of copies from buckets and hubs, which are checked by their address."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = os.environ.get("HF_HOME") or os.path.join(user, "huggingface")
    hubs = (os.environ.get(name) for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"))
    return tuple(filter(None, (str(read_store_settings().cache), home, *hubs)))
