"""Removing: a version nobody points to, blobs nobody names, and nothing besides."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.errors import NotFound, StillNeeded, StoreError
from jobs.store.adapters import commit, delete, gc, list_adapters, pull, verify
from jobs.store.blobs import FRESH_S, blob_key
from jobs.store.directory import DirectoryStore
from jobs.store.removal import GRACE_S
from tests.jobs.store.made import DyingStore, Killed, adapter_folder, draft

LATER = time.time() + GRACE_S + 86_400


@pytest.fixture
def full(store: DirectoryStore, tmp_path: Path) -> DirectoryStore:
    """chat v1 and v2, of the same config and of other weights."""
    commit(store, adapter_folder(tmp_path / "one", "one"), draft(run="r1"))
    two = adapter_folder(tmp_path / "two", "two")
    (two / "adapter_config.json").write_bytes((tmp_path / "one/adapter_config.json").read_bytes())
    commit(store, two, draft(run="r2"))
    return store


def test_equal_files_are_one_blob(full: DirectoryStore):
    assert len(list(full.list("blobs/"))) == 3


def test_a_removed_version_is_gone_and_its_number_stays_taken(full, tmp_path: Path):
    delete(full, "chat", 2)
    assert [adapter.label for adapter in list_adapters(full)] == ["chat@v1"]
    assert [key.rpartition("/")[2] for key in full.list("adapters/chat/v2/")] == [
        ".claim",
        ".deleted",
    ]
    assert commit(full, tmp_path / "two", draft(run="r3")).version == 3


def test_a_parent_is_not_removed_before_its_children(full: DirectoryStore, tmp_path: Path):
    child = commit(full, tmp_path / "two", draft(run="r3", parent="chat@v1"))
    with pytest.raises(StillNeeded, match=r"chat@v3 \(its parent\)"):
        delete(full, "chat", 1)
    delete(full, child.name, child.version)
    delete(full, "chat", 1)


def test_what_was_never_there_is_not_removed(full: DirectoryStore):
    full.put("adapters/chat/v7/.claim", b"{}")
    for version in (7, 9):
        with pytest.raises(NotFound):
            delete(full, "chat", version)
    assert len(list_adapters(full)) == 2


def test_a_death_inside_a_removal_shows_a_whole_version_or_none(full, tmp_path: Path):
    watched = DyingStore(full)
    delete(watched, "chat", 2)
    for at in range(1, len(watched.calls) + 1):
        mine = commit(full, tmp_path / "two", draft(run=f"r-{at}"))
        with pytest.raises(Killed):
            delete(DyingStore(full, at=at), "chat", mine.version)
        shown = [adapter for adapter in list_adapters(full) if adapter.version == mine.version]
        assert all(verify(full, adapter) == [] for adapter in shown)
        delete(full, "chat", mine.version)
        assert len(list_adapters(full)) == 1


def test_gc_takes_what_no_manifest_names_and_nothing_else(full: DirectoryStore, tmp_path: Path):
    full.put("adapters/chat/v9/.claim", b"{}")
    full.put("adapters/chat/v9/adapter_config.json", b"of a commit that died")
    full.put("runs/r1/spec.yaml", b"name: chat")
    full.put("blobs/sha256/README", b"no blob")
    loose = blob_key("f" * 64)
    full.put(loose, b"nobody's")
    before = set(full.list(""))
    assert gc(full, dry_run=True, now=LATER).keys == (loose,)
    assert set(full.list("")) == before
    swept = gc(full, now=LATER)
    assert (swept.keys, swept.bytes, swept.kept) == ((loose,), 8, 3)
    assert before - set(full.list("")) == {loose}
    for adapter in list_adapters(full):
        assert verify(full, adapter) == []


def test_gc_frees_a_removed_version_and_spares_what_it_shares(full, tmp_path: Path):
    delete(full, "chat", 2)
    assert len(gc(full, now=LATER).keys) == 1
    [left] = list_adapters(full)
    assert verify(full, left) == []
    pull(full, left, tmp_path / "pulled")


def test_gc_spares_what_is_young(full: DirectoryStore):
    full.put(blob_key("f" * 64), b"of a commit under way")
    assert gc(full).keys == ()


def test_gc_takes_no_grace_time_that_could_meet_a_commit(full: DirectoryStore):
    with pytest.raises(StoreError, match="use 2"):
        gc(full, grace=60)


def test_gc_removes_nothing_while_a_manifest_can_not_be_read(full: DirectoryStore):
    full.put("adapters/chat/v1/manifest.json", b"nonsense")
    full.put(blob_key("f" * 64), b"nobody's")
    with pytest.raises(StoreError, match="Nothing was removed"):
        gc(full, now=LATER)
    assert len(list(full.list("blobs/"))) == 4


def leave(store: DirectoryStore, name: str, age: float) -> Path:
    path = store.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    then = time.time() - age
    os.utime(path, (then, then))
    os.utime(path.parent, (then, then))
    return path


def test_gc_takes_what_dead_writers_left_and_nothing_of_the_living(full: DirectoryStore):
    old, young = GRACE_S + 60, GRACE_S - 600
    dead = (".tmp/7-0a", ".tmp-probe-x/first", "runs/.tmp-probe-y/first", ".tmp/.tmp-probe-z/first")
    for name in dead:
        leave(full, name, old)
    kept = [leave(full, ".tmp/8-0b", young), leave(full, "adapters/.tmp-probe-w/first", young)]
    kept += [leave(full, name, old) for name in (".mine/x", "runs/r1/.tmp-probe-v/x", ".tmpx")]
    kept.append(full.root / ".tmp" / "lock")
    os.utime(kept[-1], (1, 1))
    before = {path for path in full.root.rglob("*") if path.is_file()}
    names = (".tmp-probe-x", ".tmp/.tmp-probe-z", ".tmp/7-0a", "runs/.tmp-probe-y")
    assert gc(full, dry_run=True).leftovers == names
    assert before == {path for path in full.root.rglob("*") if path.is_file()}
    swept = gc(full)
    assert (swept.leftovers, swept.bytes, swept.keys) == (names, 16, ())
    after = {path for path in full.root.rglob("*") if path.is_file()}
    assert before - after == {full.root / name for name in dead}
    assert not list(full.root.rglob(".tmp-probe-[xyz]")) and all(path.exists() for path in kept)


def test_gc_follows_no_link_out_of_the_store(full: DirectoryStore, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    os.utime(outside / "precious", (1, 1))
    (full.root / ".tmp-probe-x").symlink_to(outside)
    (full.root / ".tmp" / "link").symlink_to(outside)
    os.utime(full.root / ".tmp" / "link", (1, 1), follow_symlinks=False)
    assert gc(full).leftovers == (".tmp/link",)
    (full.root / ".tmp" / "lock").unlink()
    (full.root / ".tmp").rmdir()
    (full.root / ".tmp").symlink_to(outside)
    assert gc(full).leftovers == ()
    assert (outside / "precious").exists()


def test_a_commit_renews_an_old_blob_before_it_leans_on_it(full: DirectoryStore, tmp_path: Path):
    old = time.time() - FRESH_S - 60
    for key in full.list("blobs/"):
        os.utime(full.path(key), (old, old))
    delete(full, "chat", 2)
    again = commit(full, tmp_path / "two", draft(run="r3"))
    for file in again.files:
        there = full.head(blob_key(file.sha256))
        assert there is not None and there.modified > old + FRESH_S
