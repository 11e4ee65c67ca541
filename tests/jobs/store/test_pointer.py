"""`current`: what a bare name means, moved forward and back, and never to what is not there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from jobs.errors import NotFound, StillNeeded, StoreError
from jobs.store.adapters import (
    commit,
    delete,
    promote,
    promote_after,
    read_pointer,
    resolve,
    rollback,
    settle,
)
from jobs.store.directory import DirectoryStore
from jobs.store.pointer import TOMBSTONE, BadPointer, Moved
from tests.jobs.store.made import DyingStore, Killed, adapter_folder, draft


@pytest.fixture
def full(store: DirectoryStore, tmp_path: Path) -> DirectoryStore:
    """chat v1, v2 and v3."""
    folder = adapter_folder(tmp_path / "exported")
    for run in ("r1", "r2", "r3"):
        commit(store, folder, draft(run=run))
    return store


def test_a_bare_name_means_the_newest_until_something_is_promoted(full: DirectoryStore):
    assert resolve(full, "chat").version == 3
    promote(full, "chat", 1)
    assert resolve(full, "chat").version == 1
    assert resolve(full, "chat@v3").version == 3


def test_a_rollback_goes_back_one_promotion_at_a_time(full: DirectoryStore):
    for version in (1, 3, 2):
        promote(full, "chat", version)
    assert [rollback(full, "chat").version for _ in range(2)] == [3, 1]
    with pytest.raises(StoreError, match="nothing to go back to"):
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


def test_what_is_not_committed_can_not_be_promoted(full: DirectoryStore):
    full.put("adapters/chat/v4/.claim", b"{}")
    with pytest.raises(NotFound, match=r"chat@v4 is not .* chat@v1, chat@v2, chat@v3"):
        promote(full, "chat", 4)
    assert read_pointer(full, "chat") is None


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_death_inside_a_promotion_leaves_the_old_or_the_new(full: DirectoryStore, after: bool):
    promote(full, "chat", 1)
    watched = DyingStore(full)
    promote(watched, "chat", 2)
    rollback(full, "chat")
    for at in range(1, len(watched.calls) + 1):
        before = resolve(full, "chat").version
        wanted = 2 if before == 1 else 1
        with pytest.raises(Killed):
            promote(DyingStore(full, at=at, after=after), "chat", wanted)
        assert resolve(full, "chat").version in (before, wanted)
        assert promote(full, "chat", wanted).version == wanted


@pytest.mark.parametrize("how", [promote, partial(promote_after, move=1)], ids=["by hand", "after"])
def test_what_is_being_removed_is_not_promoted(how, full: DirectoryStore):
    promote(full, "chat", 1)
    full.put(f"adapters/chat/v2/{TOMBSTONE}", b"")
    with pytest.raises(NotFound, match="being removed"):
        how(full, "chat", 2)
    assert resolve(full, "chat").version == 1


def test_a_name_is_not_settled_on_what_is_being_removed(full: DirectoryStore):
    full.put(f"adapters/chat/v2/{TOMBSTONE}", b"")
    with pytest.raises(NotFound, match="being removed"):
        settle(full, "chat", 2)


def test_what_the_pointer_names_is_not_removed(full: DirectoryStore):
    promote(full, "chat", 2)
    with pytest.raises(StillNeeded, match="adapters/chat/current points to it"):
        delete(full, "chat", 2)
    assert resolve(full, "chat").version == 2
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
def test_a_hostile_pointer_is_told_and_a_version_still_answers(full: DirectoryStore, written):
    full.put("adapters/chat/current", written)
    for act in (
        lambda: resolve(full, "chat"),
        lambda: promote(full, "chat", 1),
        lambda: rollback(full, "chat"),
    ):
        with pytest.raises(BadPointer) as caught:
            act()
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert resolve(full, "chat@v1").version == 1


def test_a_pointer_to_what_somebody_removed_by_hand_is_told(full: DirectoryStore):
    promote(full, "chat", 2)
    full.delete("adapters/chat/v2/manifest.json")
    with pytest.raises(NotFound, match="chat@v2 is not in the store"):
        resolve(full, "chat")


def test_a_promotion_after_a_move_stands_only_while_that_is_the_last(full: DirectoryStore):
    promote(full, "chat", 1)
    assert promote_after(full, "chat", 2, move=1).version == 2
    with pytest.raises(Moved, match=r"moved to v2 meanwhile, so v3 is not promoted"):
        promote_after(full, "chat", 3, move=1)
    assert resolve(full, "chat").version == 2


def test_a_first_promotion_finds_no_move(full: DirectoryStore):
    assert promote_after(full, "chat", 2, move=None).version == 2
    with pytest.raises(Moved):
        promote_after(full, "chat", 3, move=None)


def test_a_promotion_made_again_undoes_no_rollback(full: DirectoryStore):
    promote(full, "chat", 1)
    promote_after(full, "chat", 2, move=1)
    assert promote_after(full, "chat", 2, move=1).version == 2
    rollback(full, "chat")
    assert promote_after(full, "chat", 2, move=1).version == 1


def test_an_older_promotion_of_the_same_version_is_not_this_one(full: DirectoryStore):
    for version in (2, 1):
        promote(full, "chat", version)
    assert promote_after(full, "chat", 2, move=2).version == 2


def test_a_name_is_settled_once_and_never_moved_by_it(full: DirectoryStore):
    assert settle(full, "chat", 2).version == 2
    assert settle(full, "chat", 3).version == 2
    with pytest.raises(NotFound):
        settle(full, "chat", 4)
