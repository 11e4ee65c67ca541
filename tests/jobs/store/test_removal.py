"""Deletions: only unreferenced versions and unreferenced blobs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.errors import NotInStore, StillReferenced, StoreError
from jobs.store.adapters.operations import (
    collect_garbage,
    commit,
    delete_version,
    pull,
    scan_adapters,
    verify_adapter,
)
from jobs.store.adapters.removal import GRACE_S
from jobs.store.blobs import REWRITE_AGE_S, get_blob_key
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import DyingStore, Killed, make_adapter_folder, make_draft

LATER = time.time() + GRACE_S + 86_400


@pytest.fixture
def full(store: DirectoryStore, tmp_path: Path) -> DirectoryStore:
    """chat v1 and v2, with the same config and different weights."""
    commit(store, make_adapter_folder(tmp_path / "one", "one"), make_draft(run="r1"))
    two = make_adapter_folder(tmp_path / "two", "two")
    (two / "adapter_config.json").write_bytes((tmp_path / "one/adapter_config.json").read_bytes())
    commit(store, two, make_draft(run="r2"))
    return store


def test_equal_files_are_one_blob(full: DirectoryStore):
    assert len(list(full.list("blobs/"))) == 3


def test_a_removed_version_is_absent_and_its_number_is_not_reused(full, tmp_path: Path):
    delete_version(full, "chat", 2)
    assert [adapter.label for adapter in scan_adapters(full)[0]] == ["chat@v1"]
    assert [key.rpartition("/")[2] for key in full.list("adapters/chat/v2/")] == [
        ".claim",
        ".deleted",
    ]
    assert commit(full, tmp_path / "two", make_draft(run="r3")).version == 3


def test_a_parent_is_not_removed_before_its_children(full: DirectoryStore, tmp_path: Path):
    child = commit(full, tmp_path / "two", make_draft(run="r3", parent="chat@v1"))
    with pytest.raises(StillReferenced, match=r"chat@v3 \(its parent\)"):
        delete_version(full, "chat", 1)
    delete_version(full, child.name, child.version)
    delete_version(full, "chat", 1)


def test_a_version_that_never_existed_cannot_be_removed(full: DirectoryStore):
    full.put("adapters/chat/v7/.claim", b"{}")
    for version in (7, 9):
        with pytest.raises(NotInStore):
            delete_version(full, "chat", version)
    assert len(scan_adapters(full)[0]) == 2


def test_a_death_inside_a_removal_shows_a_complete_version_or_none(full, tmp_path: Path):
    watched = DyingStore(full)
    delete_version(watched, "chat", 2)
    for at in range(1, len(watched.calls) + 1):
        mine = commit(full, tmp_path / "two", make_draft(run=f"r-{at}"))
        with pytest.raises(Killed):
            delete_version(DyingStore(full, at=at), "chat", mine.version)
        listed = [adapter for adapter in scan_adapters(full)[0] if adapter.version == mine.version]
        assert all(verify_adapter(full, adapter) == [] for adapter in listed)
        delete_version(full, "chat", mine.version)
        assert len(scan_adapters(full)[0]) == 1


def test_gc_deletes_only_unreferenced_blobs(full: DirectoryStore, tmp_path: Path):
    full.put("adapters/chat/v9/.claim", b"{}")
    full.put("adapters/chat/v9/adapter_config.json", b"of a commit that died")
    full.put("runs/r1/spec.yaml", b"name: chat")
    full.put("blobs/sha256/README", b"no blob")
    loose = get_blob_key("f" * 64)
    full.put(loose, b"nobody's")
    before = set(full.list(""))
    assert collect_garbage(full, dry_run=True, now=LATER).keys == (loose,)
    assert set(full.list("")) == before
    swept = collect_garbage(full, now=LATER)
    assert (swept.keys, swept.bytes, swept.retained) == ((loose,), 8, 3)
    assert before - set(full.list("")) == {loose}
    for adapter in scan_adapters(full)[0]:
        assert verify_adapter(full, adapter) == []


def test_gc_frees_the_blobs_of_a_deleted_version_and_spares_shared_ones(full, tmp_path: Path):
    delete_version(full, "chat", 2)
    assert len(collect_garbage(full, now=LATER).keys) == 1
    [blobs] = scan_adapters(full)[0]
    assert verify_adapter(full, blobs) == []
    pull(full, blobs, tmp_path / "pulled")


def test_gc_spares_young_blobs(full: DirectoryStore):
    full.put(get_blob_key("f" * 64), b"of a commit under way")
    assert collect_garbage(full).keys == ()


def test_gc_refuses_a_grace_period_that_could_break_a_commit(full: DirectoryStore):
    with pytest.raises(StoreError, match="Use 2 hours"):
        collect_garbage(full, grace=60)


def test_gc_deletes_nothing_while_a_manifest_cannot_be_read(full: DirectoryStore):
    full.put("adapters/chat/v1/manifest.json", b"nonsense")
    full.put(get_blob_key("f" * 64), b"nobody's")
    with pytest.raises(StoreError, match="Nothing was deleted"):
        collect_garbage(full, now=LATER)
    assert len(list(full.list("blobs/"))) == 4


def make_leftovers(store: DirectoryStore, name: str, age: float) -> Path:
    path = store.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    then = time.time() - age
    os.utime(path, (then, then))
    os.utime(path.parent, (then, then))
    return path


def test_gc_removes_leftovers_of_dead_writers_and_none_of_living_ones(full: DirectoryStore):
    old, young = GRACE_S + 60, GRACE_S - 600
    dead = (".tmp/7-0a", ".tmp-probe-x/first", "runs/.tmp-probe-y/first", ".tmp/.tmp-probe-z/first")
    for name in dead:
        make_leftovers(full, name, old)
    manifest = [
        make_leftovers(full, ".tmp/8-0b", young),
        make_leftovers(full, "adapters/.tmp-probe-w/first", young),
    ]
    manifest += [
        make_leftovers(full, name, old) for name in (".mine/x", "runs/r1/.tmp-probe-v/x", ".tmpx")
    ]
    manifest.append(full.root / ".tmp" / "lock")
    os.utime(manifest[-1], (1, 1))
    before = {path for path in full.root.rglob("*") if path.is_file()}
    names = (".tmp-probe-x", ".tmp/.tmp-probe-z", ".tmp/7-0a", "runs/.tmp-probe-y")
    assert collect_garbage(full, dry_run=True).leftovers == names
    assert before == {path for path in full.root.rglob("*") if path.is_file()}
    swept = collect_garbage(full)
    assert (swept.leftovers, swept.bytes, swept.keys) == (names, 16, ())
    after = {path for path in full.root.rglob("*") if path.is_file()}
    assert before - after == {full.root / name for name in dead}
    assert not list(full.root.rglob(".tmp-probe-[xyz]")) and all(path.exists() for path in manifest)


def test_gc_follows_no_link_out_of_the_store(full: DirectoryStore, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    os.utime(outside / "precious", (1, 1))
    (full.root / ".tmp-probe-x").symlink_to(outside)
    (full.root / ".tmp" / "link").symlink_to(outside)
    os.utime(full.root / ".tmp" / "link", (1, 1), follow_symlinks=False)
    assert collect_garbage(full).leftovers == (".tmp/link",)
    (full.root / ".tmp" / "lock").unlink()
    (full.root / ".tmp").rmdir()
    (full.root / ".tmp").symlink_to(outside)
    assert collect_garbage(full).leftovers == ()
    assert (outside / "precious").exists()


def test_a_commit_rewrites_an_old_blob_before_it_relies_on_it(full: DirectoryStore, tmp_path: Path):
    old = time.time() - REWRITE_AGE_S - 60
    for key in full.list("blobs/"):
        os.utime(full.local_path(key), (old, old))
    delete_version(full, "chat", 2)
    again = commit(full, tmp_path / "two", make_draft(run="r3"))
    for file in again.files:
        info = full.head(get_blob_key(file.sha256))
        assert info is not None and info.modified > old + REWRITE_AGE_S
