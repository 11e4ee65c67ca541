"""`current`: the version that a bare name means, moved by compare-and-swap, with its history."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from jobs.errors import AlreadyThere, Changed, NotFound, StoreError
from jobs.spec import Frozen
from jobs.store.manifest import Time, manifest_key, time_text, version_prefix
from jobs.store.objects import ObjectStore
from jobs.store.strict_json import load_strictly
from jobs.store.versions import committed_versions

TOMBSTONE = ".deleted"
"""In a version's folder: somebody is removing it."""
KEPT = 1000
"""Moves that are remembered."""
LARGEST = 1 << 20
ROUNDS = 60
"""Times that a swap is tried while others swap too."""

Version = Annotated[int, Field(ge=1, lt=10**9)]


class Move(Frozen):
    """One move of the pointer."""

    number: Annotated[int, Field(ge=1, lt=2**53)]
    action: Literal["promote", "rollback"]
    version: Version
    when: Time


class Pointer(Frozen):
    """What lies under `current`: all moves in their order, and what a rollback goes back to."""

    format: Literal[1] = 1
    version: Version
    before: Annotated[tuple[Version, ...], Field(max_length=KEPT)] = ()
    """The versions below this one: a promotion puts one on top, a rollback takes it off."""
    moves: Annotated[tuple[Move, ...], Field(min_length=1, max_length=KEPT)]


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


class Moved(StoreError):
    """A promotion that was to follow one move of the pointer met a later one."""

    def __init__(self, name: str, version: int, there: int | None) -> None:
        super().__init__(name, version, there)
        self.name, self.version, self.there = name, version, there

    def __str__(self) -> str:
        now = "nothing" if self.there is None else f"v{self.there}"
        return (
            f"{self.name}: current was moved to {now} meanwhile, so v{self.version} is not "
            f"promoted. Compare the two; `slora adapters promote {self.name}@v{self.version}` "
            "moves it by hand."
        )


def current_key(name: str) -> str:
    """Where a name's pointer lies."""
    return f"adapters/{name}/current"


def read_pointer(store: ObjectStore, name: str) -> Pointer | None:
    """Where the name points; None where nothing was promoted. BadPointer for nonsense."""
    return _read(store, name)[0]


def promote(store: ObjectStore, name: str, version: int, *, now: datetime | None = None) -> Pointer:
    """Let the bare name mean `version`, which has to be committed. The same again is no move."""

    def move(there: Pointer | None) -> Pointer | None:
        if there is not None and there.version == version:
            return None
        below = (*there.before, there.version)[-KEPT:] if there else ()
        return _moved(there, "promote", version, below, now)

    return _promoted(store, name, version, move, now)


def promote_after(
    store: ObjectStore, name: str, version: int, *, move: int | None, now: datetime | None = None
) -> Pointer:
    """Promote where the pointer's last move still is number `move` (None: it has not been made).

    Raises Moved where it is another. The same again is no move, and undoes no later one: a
    rollback since then stands.
    """

    def swap(there: Pointer | None) -> Pointer | None:
        moves = there.moves if there else ()
        since = [one for one in moves if move is None or one.number > move]
        if any((one.action, one.version) == ("promote", version) for one in since):
            return None
        last = moves[-1].number if moves else None
        if last != move:
            raise Moved(name, version, there.version if there else None)
        below = (*there.before, there.version)[-KEPT:] if there else ()
        return _moved(there, "promote", version, below, now)

    return _promoted(store, name, version, swap, now)


def settle(store: ObjectStore, name: str, version: int, *, now: datetime | None = None) -> Pointer:
    """Let the bare name mean `version` where nothing was promoted yet; else leave it as it is.

    Without a pointer the name means the newest version, whatever it is worth.
    """

    def swap(there: Pointer | None) -> Pointer | None:
        return None if there is not None else _moved(None, "promote", version, (), now)

    return _promoted(store, name, version, swap, now)


def rollback(store: ObjectStore, name: str, *, now: datetime | None = None) -> Pointer:
    """Go back to what the name meant before the last promotion that still stands."""

    def move(there: Pointer | None) -> Pointer:
        if there is None or not there.before:
            raise StoreError(f"{name}: there is nothing to go back to. Promote a version instead.")
        _check_committed(store, name, there.before[-1])
        return _moved(there, "rollback", there.before[-1], there.before[:-1], now)

    return _swap(store, name, move)


def _promoted(
    store: ObjectStore,
    name: str,
    version: int,
    move: Callable[[Pointer | None], Pointer | None],
    now: datetime | None,
) -> Pointer:
    """Makes a move to a version that is committed, and takes it back if that is being removed."""
    _check_committed(store, name, version)
    pointer = _swap(store, name, move)
    # A removal writes its mark first and looks at the pointer then; we do it the other way round,
    # so that of two at once at least one sees the other.
    marked = store.head(version_prefix(name, version) + TOMBSTONE) is not None
    if marked and pointer.version == version:
        _swap(store, name, lambda there: _taken_back(there, version, now))
        raise NotFound(f"{name}@v{version}, which is being removed,")
    return pointer


def _check_committed(store: ObjectStore, name: str, version: int) -> None:
    if store.head(manifest_key(name, version)) is None:
        versions = committed_versions(store, name)
        raise NotFound(f"{name}@v{version}", [f"{name}@v{number}" for number in versions])


def _moved(
    there: Pointer | None,
    action: Literal["promote", "rollback"],
    version: int,
    before: tuple[int, ...],
    now: datetime | None,
) -> Pointer:
    moves = there.moves if there else ()
    number = moves[-1].number + 1 if moves else 1
    when = time_text(now or datetime.now(UTC))
    move = Move(number=number, action=action, version=version, when=when)
    return Pointer(version=version, before=before, moves=(*moves, move)[-KEPT:])


def _taken_back(there: Pointer | None, version: int, now: datetime | None) -> Pointer | None:
    if there is None or there.version != version or not there.before:
        return None
    return _moved(there, "rollback", there.before[-1], there.before[:-1], now)


def _swap(
    store: ObjectStore, name: str, move: Callable[[Pointer | None], Pointer | None]
) -> Pointer:
    for turn in range(ROUNDS):
        there, etag = _read(store, name)
        wanted = move(there)
        if wanted is None:
            assert there is not None
            return there
        data = wanted.model_dump_json(indent=2).encode() + b"\n"
        try:
            store.put(current_key(name), data, create_only=etag is None, if_match=etag)
            return wanted
        except (AlreadyThere, Changed):
            time.sleep(random.uniform(0, min(1.0, 0.02 * 2**turn)))
    raise StoreError(f"{current_key(name)}: moved by others again and again. Try it again.")


def _read(store: ObjectStore, name: str) -> tuple[Pointer | None, str | None]:
    """The pointer and its etag. The etag is asked for first: if the pointer is moved between, the
    swap meets a newer etag and is tried again."""
    key = current_key(name)
    head = store.head(key)
    if head is None:
        return None, None
    if head.size > LARGEST:
        raise BadPointer(key, f"{head.size} bytes are too many for a pointer")
    try:
        data = store.get(key)
        load_strictly(data)
        return Pointer.model_validate_json(data), head.etag
    except NotFound:
        return None, None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise BadPointer(key, f"no pointer: {first['msg'][:200]!a}") from error
    except ValueError as error:
        raise BadPointer(key, f"not the JSON of a pointer: {str(error)[:200]!a}") from error
