"""The pointer `current`: the version of a bare name, moved by compare-and-swap, with its moves."""

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
"""A file in the folder of a version that is being deleted."""
MAX_MOVES = 1000
"""The length of the history."""
MAX_POINTER_BYTES = 1 << 20
MAX_ROUNDS = 60
"""Attempts of a swap that meets other swaps."""

Version = Annotated[int, Field(ge=1, lt=10**9)]


class PointerMove(StrictModel):
    """A move of the pointer."""

    number: Annotated[int, Field(ge=1, lt=2**53)]
    action: Literal["promote", "rollback"]
    version: Version
    when: Time


class Pointer(StrictModel):
    """The content of `current`: the version, the moves in order, and the versions to return to."""

    format: Literal[1] = 1
    version: Version
    previous: Annotated[tuple[Version, ...], Field(max_length=MAX_MOVES)] = ()
    """A stack of earlier versions: a promotion pushes the old version, a rollback pops it."""
    moves: Annotated[tuple[PointerMove, ...], Field(min_length=1, max_length=MAX_MOVES)]


class BadPointer(StoreError):
    """The object under `current` is no pointer."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return (
            f"{self.key}: {self.problem}. Name a version, as in NAME@v2; to fix the pointer, "
            "delete that object and promote again."
        )


class PointerConflict(StoreError):
    """The pointer moved after the move that a promotion expected as its last."""

    def __init__(self, name: str, version: int, current: int | None) -> None:
        super().__init__(name, version, current)
        self.name, self.version, self.current = name, version, current

    def __str__(self) -> str:
        current = "nothing" if self.current is None else f"v{self.current}"
        return (
            f"{self.name}: current has moved to {current} meanwhile, so v{self.version} was not "
            f"promoted. Compare the two; `slora adapters promote {self.name}@v{self.version}` "
            "promotes it anyway."
        )


def get_pointer_key(name: str) -> str:
    """Return the key of the pointer of a name."""
    return f"adapters/{name}/current"


def read_pointer(store: ObjectStore, name: str) -> Pointer | None:
    """Return the pointer of a name, or None if nothing was promoted. Raise BadPointer."""
    return _read_pointer(store, name)[0]


def promote(store: ObjectStore, name: str, version: int, *, now: datetime | None = None) -> Pointer:
    """Point the bare name at `version`, which must be committed. Do nothing if it does already."""

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
    """Promote if the last move of the pointer is number `expected_move` (None: no pointer yet).

    Raise PointerConflict if it is another one. A repeated promotion is no move and undoes no later
    one: a rollback since then stands.
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
    """Point the bare name at `version` if it has no pointer yet; else keep the pointer.

    Without a pointer the name resolves to its newest version, however good that is.
    """

    def advance(pointer: Pointer | None) -> Pointer | None:
        return None if pointer is not None else _record_move(None, "promote", version, (), now)

    return _promote_with(store, name, version, advance, now)


def rollback(store: ObjectStore, name: str, *, now: datetime | None = None) -> Pointer:
    """Return to the version before the last promotion that was not rolled back."""

    def advance(pointer: Pointer | None) -> Pointer:
        if pointer is None or not pointer.previous:
            raise StoreError(f"{name}: no earlier promotion exists. Promote a version instead.")
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
    """Move to a committed version, and revert the move if that version is being deleted."""
    _check_committed(store, name, version)
    pointer = _swap(store, name, advance)
    # A deletion writes its tombstone first and reads the pointer afterwards; a promotion does it
    # the other way round, so that at least one of the two sees the other.
    is_being_removed = store.head(get_version_prefix(name, version) + TOMBSTONE) is not None
    if is_being_removed and pointer.version == version:
        _swap(store, name, lambda current: _revert_promotion(current, version, now))
        raise NotInStore(f"{name}@v{version}, which is being deleted,")
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
    raise StoreError(
        f"{get_pointer_key(name)}: {MAX_ROUNDS} writes failed because of concurrent promotions. "
        "Try again."
    )


def _read_pointer(store: ObjectStore, name: str) -> tuple[Pointer | None, str | None]:
    """Return the pointer and its etag. The etag is read first: if the pointer moves in between,
    the swap meets a newer etag and is repeated."""
    key = get_pointer_key(name)
    info = store.head(key)
    if info is None:
        return None, None
    if info.size > MAX_POINTER_BYTES:
        raise BadPointer(key, f"{info.size} bytes exceed the limit of {MAX_POINTER_BYTES}")
    try:
        data = store.get(key)
        load_strictly(data)
        return Pointer.model_validate_json(data), info.etag
    except NotInStore:
        return None, None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise BadPointer(key, f"not a pointer: {first['msg'][:200]!a}") from error
    except ValueError as error:
        raise BadPointer(key, f"invalid JSON: {str(error)[:200]!a}") from error
