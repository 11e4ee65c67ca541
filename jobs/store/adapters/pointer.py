"""The pointer `current`: the version of a bare name, moved by compare-and-swap, with its moves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from jobs.errors import AlreadyExists, NotInStore, StoreError, Untrusted, WriteConflict
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import (
    MAX_MANIFEST_BYTES,
    Time,
    format_time,
    get_manifest_key,
    get_version_prefix,
    parse_manifest,
)
from jobs.store.adapters.versions import list_versions
from jobs.store.base import ObjectStore
from jobs.store.strict_json import load_strictly
from jobs.store.trust.pointer_trust import (
    MAX_CLAIMED_MOVE,
    PointerFacts,
    PointerSignature,
    PointerTrust,
)
from jobs.store.trust.trust_policy import (
    demand_signature,
    load_configured_signer,
    read_trust_policy,
)

if TYPE_CHECKING:
    from jobs.store.trust.signatures import Signer

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
    signature: PointerSignature | None = None


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


def read_pointer(store: ObjectStore, name: str, *, min_move: int = 0) -> Pointer | None:
    """Return the pointer of a name, or None if nothing was promoted. Raise BadPointer.

    With a trust policy, raise Untrusted unless a trusted key signed it and its last move is not
    older than the highest one that this user has seen, and than `min_move`.
    """
    # First what was seen: the pointer may be moved between the two reads.
    trust = PointerTrust(store.url(""), name, policy=read_trust_policy(), min_move=min_move)
    pointer = load_pointer(store, name)
    trust.check(_get_facts(name, pointer), pointer.signature if pointer else None)
    return pointer


def load_pointer(store: ObjectStore, name: str) -> Pointer | None:
    """Return the pointer of a name, whoever wrote it. Raise BadPointer."""
    return _read_pointer(store, name)[0]


def promote(
    store: ObjectStore,
    name: str,
    version: int,
    *,
    now: datetime | None = None,
    signer: Signer | None = None,
    min_move: int = 0,
) -> Pointer:
    """Point the bare name at `version`, which must be committed. Do nothing if it does already.

    Sign the move with `signer`, or the configured key. With a trust policy, replace a pointer that
    is not trusted; its moves are counted on, from `min_move` too, and its history is dropped.
    """

    def advance(pointer: Pointer | None) -> Pointer | None:
        if pointer is not None and pointer.version == version:
            return None
        previous = (*pointer.previous, pointer.version)[-MAX_MOVES:] if pointer else ()
        return _record_move(pointer, "promote", version, previous, now)

    mover = _make_mover(store, name, signer, min_move, repairs=True)
    return _promote_with(mover, version, advance, now)


def promote_after(
    store: ObjectStore,
    name: str,
    version: int,
    *,
    expected_move: int | None,
    now: datetime | None = None,
    signer: Signer | None = None,
    min_move: int = 0,
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

    return _promote_with(_make_mover(store, name, signer, min_move), version, advance, now)


def promote_if_unset(
    store: ObjectStore,
    name: str,
    version: int,
    *,
    now: datetime | None = None,
    signer: Signer | None = None,
    min_move: int = 0,
) -> Pointer:
    """Point the bare name at `version` if it has no pointer yet; else keep the pointer.

    Without a pointer the name resolves to its newest version, however good that is.
    """

    def advance(pointer: Pointer | None) -> Pointer | None:
        return None if pointer is not None else _record_move(None, "promote", version, (), now)

    return _promote_with(_make_mover(store, name, signer, min_move), version, advance, now)


def rollback(
    store: ObjectStore,
    name: str,
    *,
    now: datetime | None = None,
    signer: Signer | None = None,
    min_move: int = 0,
) -> Pointer:
    """Return to the version before the last promotion that was not rolled back."""

    def advance(pointer: Pointer | None) -> Pointer:
        if pointer is None or not pointer.previous:
            raise StoreError(f"{name}: no earlier promotion exists. Promote a version instead.")
        _check_committed(store, name, pointer.previous[-1])
        return _record_move(pointer, "rollback", pointer.previous[-1], pointer.previous[:-1], now)

    return _swap(_make_mover(store, name, signer, min_move), advance)


@dataclass(frozen=True)
class _Mover:
    """The pointer of a name in a store, and the trust under which it is moved."""

    store: ObjectStore
    name: str
    trust: PointerTrust
    repairs: bool
    """Whether a pointer that is not trusted is replaced."""


def _make_mover(
    store: ObjectStore, name: str, signer: Signer | None, min_move: int, *, repairs: bool = False
) -> _Mover:
    signer = signer or load_configured_signer()
    policy = read_trust_policy()
    trust = PointerTrust(store.url(""), name, policy=policy, signer=signer, min_move=min_move)
    return _Mover(store, name, trust, repairs and trust.can_repair)


def _promote_with(
    mover: _Mover,
    version: int,
    advance: Callable[[Pointer | None], Pointer | None],
    now: datetime | None,
) -> Pointer:
    """Move to a committed version, and revert the move if that version is being deleted."""
    store, name = mover.store, mover.name
    _check_committed(store, name, version)
    pointer = _swap(mover, advance)
    # A deletion writes its tombstone first and reads the pointer afterwards; a promotion does it
    # the other way round, so that at least one of the two sees the other.
    is_being_removed = store.head(get_version_prefix(name, version) + TOMBSTONE) is not None
    if is_being_removed and pointer.version == version:
        _swap(mover, lambda current: _revert_promotion(current, version, now))
        raise NotInStore(f"{name}@v{version}, which is being deleted,")
    return pointer


def _check_committed(store: ObjectStore, name: str, version: int) -> None:
    """Raise NotInStore, or Untrusted if a policy refuses the version."""
    key = get_manifest_key(name, version)
    if store.head(key) is None:
        versions = list_versions(store, name)
        raise NotInStore(f"{name}@v{version}", [f"{name}@v{number}" for number in versions])
    if read_trust_policy() is not None:
        data = store.read(key, 0, MAX_MANIFEST_BYTES + 1)
        demand_signature(store, parse_manifest(data, key), data)


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


def _swap(mover: _Mover, advance: Callable[[Pointer | None], Pointer | None]) -> Pointer:
    store, key = mover.store, get_pointer_key(mover.name)
    for turn in range(MAX_ROUNDS):
        pointer, etag = _read_pointer(store, mover.name)
        trusted, last_move = _admit_pointer(mover, pointer)
        updated = advance(trusted)
        if updated is None:
            assert trusted is not None
            return trusted
        updated = _sign_pointer(mover, _continue_count(updated, last_move))
        data = updated.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"
        try:
            store.put(key, data, create_only=etag is None, if_match=etag)
        except (AlreadyExists, WriteConflict):
            time.sleep(random.uniform(0, min(1.0, 0.02 * 2**turn)))
            continue
        mover.trust.check(_get_facts(mover.name, updated), updated.signature)
        return updated
    raise StoreError(
        f"{key}: {MAX_ROUNDS} writes failed because of concurrent promotions. Try again."
    )


def _admit_pointer(mover: _Mover, pointer: Pointer | None) -> tuple[Pointer | None, int]:
    """Return the pointer if it is trusted, and the number of the last move.

    Return None for one that a promotion replaces. Raise Untrusted for another.
    """
    last_move = pointer.moves[-1].number if pointer else 0
    try:
        mover.trust.check(_get_facts(mover.name, pointer), pointer.signature if pointer else None)
    except Untrusted:
        if not mover.repairs:
            raise
        claimed = last_move if last_move < MAX_CLAIMED_MOVE else 0
        return None, max(claimed, mover.trust.highest_move)
    return pointer, last_move


def _continue_count(pointer: Pointer, last_move: int) -> Pointer:
    """Return the pointer with its newest move numbered after `last_move`."""
    newest = pointer.moves[-1]
    if newest.number > last_move:
        return pointer
    newest = newest.model_copy(update={"number": last_move + 1})
    return pointer.model_copy(update={"moves": (*pointer.moves[:-1], newest)})


def _sign_pointer(mover: _Mover, pointer: Pointer) -> Pointer:
    facts = _get_facts(mover.name, pointer)
    assert facts is not None
    return pointer.model_copy(update={"signature": mover.trust.sign(facts)})


def _get_facts(name: str, pointer: Pointer | None) -> PointerFacts | None:
    if pointer is None:
        return None
    # Without absent fields: a later version may add some.
    content = pointer.model_dump(mode="json", exclude={"signature"}, exclude_none=True)
    return PointerFacts(name, pointer.version, pointer.moves[-1].number, content)


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
