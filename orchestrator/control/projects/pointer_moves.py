"""Move the pointer of an adapter for a run: the service does it, which knows the run's project.

A job commits its version and records what it decided. Every step can be repeated after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.errors import NotInStore, Untrusted
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.pointer import (
    BadPointer,
    PointerConflict,
    promote_after,
    promote_if_unset,
    read_pointer,
)
from jobs.store.adapters.versions import find_last_version, list_versions
from jobs.store.base import ObjectStore

if TYPE_CHECKING:
    from jobs.store.trust.signatures import Signer

REQUEST_EVENT = "promotion_requested"
DECISION_EVENTS = ("promoted", "not_promoted", REQUEST_EVENT)
"""The last events of a retraining that made an adapter."""


@dataclass(frozen=True)
class Promotion:
    """The request of a job to promote the version that it committed."""

    expected_move: int | None
    """The pointer's last move when the job compared the adapters; None if there was no pointer."""


def find_promotion(events: Sequence[Mapping[str, Any]], manifest: Manifest) -> Promotion | None:
    """Return the request of a run to promote this version, if that was its last decision."""
    decisions = [event for event in events if event.get("event") in DECISION_EVENTS]
    if not decisions or decisions[-1].get("event") != REQUEST_EVENT:
        return None
    request = decisions[-1]
    move = request.get("expected_move")
    if request.get("adapter") != manifest.label or not _is_move(move):
        return None
    return Promotion(move)


def apply_promotion(
    store: ObjectStore,
    manifest: Manifest,
    promotion: Promotion,
    *,
    signer: Signer | None = None,
    min_move: int = 0,
) -> str:
    """Promote a version unless the pointer has moved since. Return the result in words.

    The move is signed with `signer`. A pointer that a trust policy refuses stays, also one that is
    older than `min_move`, the last move that the registry has seen. A repeated promotion is no
    move, and undoes no later one. Raise StoreError.
    """
    try:
        pointer = promote_after(
            store,
            manifest.name,
            manifest.version,
            expected_move=promotion.expected_move,
            signer=signer,
            min_move=min_move,
        )
    except (PointerConflict, BadPointer, NotInStore, Untrusted) as conflict:
        return f"not promoted: {conflict}"
    if pointer.version == manifest.version:
        return f"promoted {manifest.label}"
    return f"promoted {manifest.label}; current has moved to v{pointer.version} since"


def pin_current(
    store: ObjectStore, name: str, *, signer: Signer | None = None, min_move: int = 0
) -> None:
    """Point a name without a pointer at its newest version: that is what a new one competes with.

    Without a pointer the name would resolve to the new version, however good it is. Raise Untrusted
    if a trust policy refuses that version or the pointer.
    """
    try:
        pointer = read_pointer(store, name, min_move=min_move)
        if pointer is None and (versions := list_versions(store, name)):
            version = find_last_version(versions)
            promote_if_unset(store, name, version, signer=signer, min_move=min_move)
    except (BadPointer, NotInStore):
        return  # the job reports what is wrong


def _is_move(value: object) -> bool:
    """Return whether a value of a job's event may be the number of a move."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool))
