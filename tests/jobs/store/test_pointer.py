"""The pointer `current`: moved forward and back, and never to an absent version."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from jobs.errors import NotInStore, StillReferenced, StoreError
from jobs.store.adapters.operations import (
    commit,
    delete_version,
    promote,
    promote_after,
    promote_if_unset,
    read_pointer,
    resolve_adapter,
    rollback,
)
from jobs.store.adapters.pointer import TOMBSTONE, BadPointer, PointerConflict
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import DyingStore, Killed, make_adapter_folder, make_draft


@pytest.fixture
def full(store: DirectoryStore, tmp_path: Path) -> DirectoryStore:
    """chat v1, v2 and v3."""
    folder = make_adapter_folder(tmp_path / "exported")
    for run in ("r1", "r2", "r3"):
        commit(store, folder, make_draft(run=run))
    return store


def test_a_bare_name_resolves_to_the_newest_version_until_a_promotion(full: DirectoryStore):
    assert resolve_adapter(full, "chat").version == 3
    promote(full, "chat", 1)
    assert resolve_adapter(full, "chat").version == 1
    assert resolve_adapter(full, "chat@v3").version == 3


def test_a_rollback_goes_back_one_promotion_at_a_time(full: DirectoryStore):
    for version in (1, 3, 2):
        promote(full, "chat", version)
    assert [rollback(full, "chat").version for _ in range(2)] == [3, 1]
    with pytest.raises(StoreError, match="no earlier promotion"):
        rollback(full, "chat")
    pointer = promote(full, "chat", 3)
    moves = [(move.number, move.action, move.version) for move in pointer.moves]
    assert moves == [
        (1, "promote", 1), (2, "promote", 3), (3, "promote", 2),
        (4, "rollback", 3), (5, "rollback", 1), (6, "promote", 3),
    ]  # fmt: skip


def test_the_same_promotion_again_is_no_move(full: DirectoryStore):
    first = promote(full, "chat", 2)
    assert promote(full, "chat", 2) == first


def test_an_uncommitted_version_cannot_be_promoted(full: DirectoryStore):
    full.put("adapters/chat/v4/.claim", b"{}")
    with pytest.raises(NotInStore, match=r"chat@v4 is not .* chat@v1, chat@v2, chat@v3"):
        promote(full, "chat", 4)
    assert read_pointer(full, "chat") is None


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_death_inside_a_promotion_leaves_the_old_or_the_new(full: DirectoryStore, after: bool):
    promote(full, "chat", 1)
    watched = DyingStore(full)
    promote(watched, "chat", 2)
    rollback(full, "chat")
    for at in range(1, len(watched.calls) + 1):
        before = resolve_adapter(full, "chat").version
        target = 2 if before == 1 else 1
        with pytest.raises(Killed):
            promote(DyingStore(full, at=at, after=after), "chat", target)
        assert resolve_adapter(full, "chat").version in (before, target)
        assert promote(full, "chat", target).version == target


@pytest.mark.parametrize(
    "how", [promote, partial(promote_after, expected_move=1)], ids=["by hand", "after"]
)
def test_a_version_that_is_being_deleted_is_not_promoted(how, full: DirectoryStore):
    promote(full, "chat", 1)
    full.put(f"adapters/chat/v2/{TOMBSTONE}", b"")
    with pytest.raises(NotInStore, match="being deleted"):
        how(full, "chat", 2)
    assert resolve_adapter(full, "chat").version == 1


def test_promote_if_unset_takes_no_version_that_is_being_deleted(full: DirectoryStore):
    full.put(f"adapters/chat/v2/{TOMBSTONE}", b"")
    with pytest.raises(NotInStore, match="being deleted"):
        promote_if_unset(full, "chat", 2)


def test_the_current_version_is_not_deleted(full: DirectoryStore):
    promote(full, "chat", 2)
    with pytest.raises(StillReferenced, match="in use by adapters/chat/current"):
        delete_version(full, "chat", 2)
    assert resolve_adapter(full, "chat").version == 2
    assert full.head(f"adapters/chat/v2/{TOMBSTONE}") is None


@pytest.mark.parametrize(
    "written",
    [
        b"", b"v2", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"version": 1}', b" " * (2 << 20),
        b'{"format":1,"version":"1","moves":[]}', b'{"format":1,"version":0,"moves":[]}',
        b'{"format":1,"version":1,"version":2,"moves":[]}',
        b'{"format":1,"version":1,"moves":[],"code":"x"}',
    ],
    ids=range(12),
)  # fmt: skip
def test_a_corrupt_pointer_is_an_error_and_a_named_version_still_resolves(
    full: DirectoryStore, written
):
    full.put("adapters/chat/current", written)
    for act in (
        lambda: resolve_adapter(full, "chat"),
        lambda: promote(full, "chat", 1),
        lambda: rollback(full, "chat"),
    ):
        with pytest.raises(BadPointer) as caught:
            act()
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert resolve_adapter(full, "chat@v1").version == 1


def test_a_pointer_to_a_version_that_was_removed_by_hand_is_an_error(full: DirectoryStore):
    promote(full, "chat", 2)
    full.delete("adapters/chat/v2/manifest.json")
    with pytest.raises(NotInStore, match="chat@v2 is not in the store"):
        resolve_adapter(full, "chat")


def test_a_promotion_after_a_move_stands_only_while_that_is_the_last(full: DirectoryStore):
    promote(full, "chat", 1)
    assert promote_after(full, "chat", 2, expected_move=1).version == 2
    with pytest.raises(PointerConflict, match=r"moved to v2 meanwhile, so v3 was not promoted"):
        promote_after(full, "chat", 3, expected_move=1)
    assert resolve_adapter(full, "chat").version == 2


def test_a_first_promotion_expects_no_move(full: DirectoryStore):
    assert promote_after(full, "chat", 2, expected_move=None).version == 2
    with pytest.raises(PointerConflict):
        promote_after(full, "chat", 3, expected_move=None)


def test_a_repeated_promotion_undoes_no_rollback(full: DirectoryStore):
    promote(full, "chat", 1)
    promote_after(full, "chat", 2, expected_move=1)
    assert promote_after(full, "chat", 2, expected_move=1).version == 2
    rollback(full, "chat")
    assert promote_after(full, "chat", 2, expected_move=1).version == 1


def test_an_older_promotion_of_the_same_version_is_not_this_one(full: DirectoryStore):
    for version in (2, 1):
        promote(full, "chat", version)
    assert promote_after(full, "chat", 2, expected_move=2).version == 2


def test_promote_if_unset_moves_no_existing_pointer(full: DirectoryStore):
    assert promote_if_unset(full, "chat", 2).version == 2
    assert promote_if_unset(full, "chat", 3).version == 2
    with pytest.raises(NotInStore):
        promote_if_unset(full, "chat", 4)
