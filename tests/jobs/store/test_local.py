"""The store in a directory: complete or absent objects, conditional writes, no debris."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobs.errors import AlreadyExists, InputError, NotInStore, StoreError
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import race


def list_tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_objects_can_be_written_read_listed_and_deleted(store: DirectoryStore, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"from a file")
    store.put("b/two", b"2")
    store.put("a/one", b"first")
    store.put("a/one", b"again")
    store.put_file("b/file", tmp_path / "file")
    assert list(store.list("")) == ["a/one", "b/file", "b/two"]
    assert list(store.list("b/t")) == ["b/two"]
    assert list(store.list("nothing/")) == []
    assert store.get("a/one") == b"again"
    with store.open("b/file") as stream:
        assert stream.read() == b"from a file"
    info = store.head("b/file")
    assert info is not None and info.size == 11
    store.delete("a/one")
    store.delete("a/one")
    assert store.head("a/one") is None


def test_keys_are_listed_in_the_order_of_their_text(store: DirectoryStore):
    # A folder sorts by its name and a slash; a plain walk gets this wrong.
    keys = ["a-b/x", "a/x", "a.b", "a/b/c", "B"]
    for key in keys:
        store.put(key, b"")
    assert list(store.list("")) == sorted(keys)


@pytest.mark.parametrize("key", ["a/three", "a", "a/one/below", "nothing"])
def test_an_absent_object_raises_an_error_or_is_none(store: DirectoryStore, key: str):
    store.put("a/one", b"1")
    assert store.head(key) is None
    with pytest.raises(NotInStore):
        store.get(key)
    with pytest.raises(NotInStore):
        store.open(key)
    store.delete("nothing")


def test_the_error_of_an_absent_object_lists_its_siblings(store: DirectoryStore):
    store.put("a/one", b"1")
    with pytest.raises(NotInStore, match="Available: a/one"):
        store.get("a/two")


def test_create_only_keeps_the_existing_object(store: DirectoryStore, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"second")
    store.put("a", b"first", create_only=True)
    with pytest.raises(AlreadyExists):
        store.put("a", b"second", create_only=True)
    with pytest.raises(AlreadyExists):
        store.put_file("a", tmp_path / "file", create_only=True)
    assert store.get("a") == b"first"
    assert list((store.root / ".tmp").iterdir()) == []


def _create(start: Barrier, mine: int, root: Path) -> None:
    start.wait()
    for turn in range(50):
        try:
            DirectoryStore(root).put(f"key-{turn}", str(mine).encode() * 1000, create_only=True)
        except AlreadyExists:
            continue
        DirectoryStore(root).put(f"won-{turn}-by-{mine}", b"")


def test_exactly_one_of_concurrent_creators_wins(tmp_path: Path):
    assert race(_create, tmp_path, count=4) == [0] * 4
    store = DirectoryStore(tmp_path)
    for turn in range(50):
        [winner] = store.list(f"won-{turn}-by-")
        assert store.get(f"key-{turn}") == winner[-1].encode() * 1000


def test_an_unfinished_write_is_neither_listed_nor_read(store: DirectoryStore):
    with store._open_temporary() as (file, path):
        file.write(b"half")
        file.flush()
        assert path.exists()
        assert list(store.list("")) == []
        with pytest.raises(InputError):
            store.get(path.relative_to(store.root).as_posix())
    assert not path.exists()


def test_a_failed_write_keeps_the_old_object_and_leaves_no_debris(store: DirectoryStore):
    store.put("a/one", b"old")
    with pytest.raises(StoreError, match="No such file"):
        store.put_file("a/one", Path("/no/such/file"))
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        store.put("a/one/below", b"new")
    assert store.get("a/one") == b"old"
    assert [path.name for path in (store.root / ".tmp").iterdir()] == ["lock"]


def test_a_link_out_of_the_store_is_neither_followed_nor_listed(tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    store = DirectoryStore(tmp_path / "store")
    store.put("a/one", b"1")
    (store.root / "folder").symlink_to(tmp_path / "outside")
    (store.root / "file").symlink_to(tmp_path / "outside" / "secret")
    (store.root / "loop").symlink_to(store.root / "loop")
    for key in ("folder/secret", "file", "loop", "folder/new"):
        with pytest.raises(InputError, match="link"):
            store.get(key)
        with pytest.raises(InputError, match="link"):
            store.put(key, b"x")
    assert list(store.list("")) == ["a/one"]
    assert os.listdir(tmp_path / "outside") == ["secret"]


def test_a_store_reached_through_a_link_works(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    store = DirectoryStore(tmp_path / "link")
    store.put("a", b"x")
    assert (tmp_path / "disk" / "a").read_bytes() == b"x"


def test_objects_have_the_permissions_of_the_umask(store: DirectoryStore):
    before = os.umask(0o022)
    try:
        store.put("a", b"x")
    finally:
        os.umask(before)
    assert store.local_path("a").stat().st_mode & 0o777 == 0o644


def test_a_store_survives_a_pickle(store: DirectoryStore):
    store.put("a", b"x")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"x"


@contextmanager
def assert_unchanged(folder: Path) -> Iterator[None]:
    before = list_tree(folder)
    yield
    assert list_tree(folder) == before


@pytest.mark.parametrize("folder", ["store", "new/deep/store", "."])
def test_a_check_of_a_writable_folder_leaves_nothing_behind(folder: str, tmp_path: Path):
    with assert_unchanged(tmp_path):
        assert DirectoryStore(tmp_path / folder).check_writable() is None


def test_a_check_of_a_store_in_use_leaves_it_as_it_is(store: DirectoryStore):
    store.put("adapters/a", b"1")
    store.put("runs/a", b"1")
    with assert_unchanged(store.root):
        assert store.check_writable() is None


@pytest.mark.parametrize(
    "folder", ["file", "file/store", "file/deep/store", "/proc/store", "/sys/store", "dangling/x"]
)
def test_a_check_of_an_unwritable_folder_gives_a_reason_and_leaves_nothing_behind(
    folder: str, tmp_path: Path
):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to("/proc/nowhere")
    with assert_unchanged(tmp_path):
        reason = DirectoryStore(tmp_path / folder).check_writable()
    assert reason is not None and "cannot be written" in reason


@pytest.mark.parametrize("part", [".tmp", "adapters", "runs"])
def test_a_check_tests_the_folders_that_will_be_written(part: str, store: DirectoryStore):
    store.root.mkdir()
    (store.root / part).write_text("in the way")
    assert part in (store.check_writable() or "")
