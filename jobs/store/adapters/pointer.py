"""`current`: the version that a bare name means, moved by compare-and-swap, with its history."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from jobs.errors import AlreadyExists, NotInStore, StoreError, WriteConflict
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Time, format_time, get_manifest_key, get_version_prefix
from jobs.store.adapters.versions import list_versions
from jobs.store.base import ObjectStore
from jobs.store.strict_json import load_strictly

TOMBSTONE = ".deleted"
"""In a version's folder: somebody is removing it."""
MAX_MOVES = 1000
"""Moves that are remembered."""
MAX_POINTER_BYTES = 1 << 20
MAX_ROUNDS = 60
"""Times that a swap is tried while others swap too."""

Version = Annotated[int, Field(ge=1, lt=10**9)]


class PointerMove(StrictModel):
    """One move of the pointer."""

    number: Annotated[int, Field(ge=1, lt=2**53)]
    action: Literal["promote", "rollback"]
    version: Version
    when: Time


class Pointer(StrictModel):
    """What lies under `current`: all moves in their order, and what a rollback goes back to."""

    format: Literal[1] = 1
    version: Version
    previous: Annotated[tuple[Version, ...], Field(max_length=MAX_MOVES)] = ()
    """The versions below this one: a promotion puts one on top, a rollback takes it off."""
    moves: Annotated[tuple[PointerMove, ...], Field(min_length=1, max_length=MAX_MOVES)]


class BadPointer(StoreError):
    """The bytes under `current` are no pointer."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return (
            f"{self.key}: {self.problem}. Name a version, as in NAME@v2; to mend it, remove that "
            "object and promote again."
        )


class PointerConflict(StoreError):
    """A promotion that was to follow one move of the pointer met a later one."""

    def __init__(self, name: str, version: int, current: int | None) -> None:
        super().__init__(name, version, current)
        self.name, self.version, self.current = name, version, current

    def __str__(self) -> str:
        current = "nothing" if self.current is None else f"v{self.current}"
        return (
            f"{self.name}: current was moved to {current} meanwhile, so v{self.version} is not "
            f"promoted. Compare the two; `slora adapters promote {self.name}@v{self.version}` "
            "moves it by hand."
        )


def get_pointer_key(name: str) -> str:
    """Where a name's pointer lies."""
    return f"adapters/{name}/current"


def read_pointer(store: ObjectStore, name: str) -> Pointer | None:
    """Where the name points; None where nothing was promoted. BadPointer for nonsense."""
    return _read_pointer(store, name)[0]


def promote(store: ObjectStore, name: str, version: int, *, now: datetime | None = None) -> Pointer:
    """Let the bare name mean `version`, which has to be committed. The same again is no move."""

    def advance(pointer: Pointer | None) -> Pointer | None:
        if pointer is not None and pointer.version == version:
            return None
        previous = (*pointer.previous, pointer.version)[-MAX_MOVES:] if pointer else ()
        return _record_move(pointer, "promote", version, previous, now)

    return _promote_with(store, name, version, advance, now)


def promote_after(
    store: ObjectStore,
    name: str,
    version: int,
    *,
    expected_move: int | None,
    now: datetime | None = None,
) -> Pointer:
    """Promote where the pointer's last move still is number `move` (None: it has not been made).

    Raises Moved where it is another. The same again is no move, and undoes no later one: a
    rollback since then stands.
    """

    def advance(pointer: Pointer | None) -> Pointer | None:
        moves = pointer.moves if pointer else ()
        since = [move for move in moves if expected_move is None or move.number > expected_move]
        if any((move.action, move.version) == ("promote", version) for move in since):
            return None
        last = moves[-1].number if moves else None
        if last != expected_move:
            raise PointerConflict(name, version, pointer.version if pointer else None)
        previous = (*pointer.previous, pointer.version)[-MAX_MOVES:] if pointer else ()
        return _record_move(pointer, "promote", version, previous, now)

    return _promote_with(store, name, version, advance, now)


def promote_if_unset(
    store: ObjectStore, name: str, version: int, *, now: datetime | None = None
) -> Pointer:
    """Let the bare name mean `version` where nothing was promoted yet; else leave it as it is.

    Without a pointer the name means the newest version, whatever it is worth.
    """

    def advance(pointer: Pointer | None) -> Pointer | None:
        return None if pointer is not None else _record_move(None, "promote", version, (), now)

    return _promote_with(store, name, version, advance, now)


def rollback(store: ObjectStore, name: str, *, now: datetime | None = None) -> Pointer:
    """Go back to what the name meant before the last promotion that still stands."""

    def advance(pointer: Pointer | None) -> Pointer:
        if pointer is None or not pointer.previous:
            raise StoreError(f"{name}: there is nothing to go back to. Promote a version instead.")
        _check_committed(store, name, pointer.previous[-1])
        return _record_move(pointer, "rollback", pointer.previous[-1], pointer.previous[:-1], now)

    return _swap(store, name, advance)


def _promote_with(
    store: ObjectStore,
    name: str,
    version: int,
    advance: Callable[[Pointer | None], Pointer | None],
    now: datetime | None,
) -> Pointer:
    """Makes a move to a version that is committed, and takes it back if that is being removed."""
    _check_committed(store, name, version)
    pointer = _swap(store, name, advance)
    # A removal writes its mark first and looks at the pointer then; we do it the other way round,
    # so that of two at once at least one sees the other.
    is_being_removed = store.head(get_version_prefix(name, version) + TOMBSTONE) is not None
    if is_being_removed and pointer.version == version:
        _swap(store, name, lambda current: _revert_promotion(current, version, now))
        raise NotInStore(f"{name}@v{version}, which is being removed,")
    return pointer


def _check_committed(store: ObjectStore, name: str, version: int) -> None:
    if store.head(get_manifest_key(name, version)) is None:
        versions = list_versions(store, name)
        raise NotInStore(f"{name}@v{version}", [f"{name}@v{number}" for number in versions])


def _record_move(
    pointer: Pointer | None,
    action: Literal["promote", "rollback"],
    version: int,
    previous: tuple[int, ...],
    now: datetime | None,
) -> Pointer:
    moves = pointer.moves if pointer else ()
    number = moves[-1].number + 1 if moves else 1
    when = format_time(now or datetime.now(UTC))
    move = PointerMove(number=number, action=action, version=version, when=when)
    return Pointer(version=version, previous=previous, moves=(*moves, move)[-MAX_MOVES:])


def _revert_promotion(
    pointer: Pointer | None, version: int, now: datetime | None
) -> Pointer | None:
    if pointer is None or pointer.version != version or not pointer.previous:
        return None
    return _record_move(pointer, "rollback", pointer.previous[-1], pointer.previous[:-1], now)


def _swap(
    store: ObjectStore, name: str, advance: Callable[[Pointer | None], Pointer | None]
) -> Pointer:
    for turn in range(MAX_ROUNDS):
        pointer, etag = _read_pointer(store, name)
        updated = advance(pointer)
        if updated is None:
            assert pointer is not None
            return pointer
        data = updated.model_dump_json(indent=2).encode() + b"\n"
        try:
            store.put(get_pointer_key(name), data, create_only=etag is None, if_match=etag)
            return updated
        except (AlreadyExists, WriteConflict):
            time.sleep(random.uniform(0, min(1.0, 0.02 * 2**turn)))
    raise StoreError(f"{get_pointer_key(name)}: moved by others again and again. Try it again.")


def _read_pointer(store: ObjectStore, name: str) -> tuple[Pointer | None, str | None]:
    """The pointer and its etag. The etag is asked for first: if the pointer is moved between, the
    swap meets a newer etag and is tried again."""
    key = get_pointer_key(name)
    info = store.head(key)
    if info is None:
        return None, None
    if info.size > MAX_POINTER_BYTES:
        raise BadPointer(key, f"{info.size} bytes are too many for a pointer")
    try:
        data = store.get(key)
        load_strictly(data)
        return Pointer.model_validate_json(data), info.etag
    except NotInStore:
        return None, None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise BadPointer(key, f"no pointer: {first['msg'][:200]!a}") from error
    except ValueError as error:
        raise BadPointer(key, f"not the JSON of a pointer: {str(error)[:200]!a}") from error
