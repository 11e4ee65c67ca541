"""The contract of every store: complete or absent objects, create-only writes, swaps."""

from __future__ import annotations

import hashlib
import pickle
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobs.errors import AlreadyExists, InputError, NotInStore, WriteConflict
from jobs.store.base import ObjectStore
from jobs.store.probe import find_missing_guarantee
from jobs.store.s3 import list_keys
from jobs.store.s3.multipart import PART_BYTES
from tests.jobs.store.builders import catch, race
from tests.jobs.store.test_keys import HOSTILE

LARGE = PART_BYTES * 2 + 12_345


def large(folder: Path) -> Path:
    path = folder / "large"
    path.write_bytes(b"".join(bytes([n % 251]) * 1000 for n in range(-(-LARGE // 1000)))[:LARGE])
    return path


def test_objects_can_be_written_read_listed_and_deleted(store: ObjectStore, tmp_path: Path):
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
        assert stream.read(4) + stream.read() == b"from a file"
    info = store.head("b/file")
    assert info is not None and info.size == 11 and info.modified > 1e9
    store.delete("a/one")
    store.delete("a/one")
    assert store.head("a/one") is None


def test_the_age_of_an_object_is_measured_by_the_stores_clock(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    started = time.monotonic()
    store.put("a/beat", b"1")
    # The machine that reads is a day ahead, and the request was sent before it was.
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 86400)
    age = store.measure_age("a/beat")
    assert age is not None and 0 <= age <= time.monotonic() - started + 1.1
    assert store.measure_age("a/none") is None


def test_keys_are_listed_in_the_order_of_their_text(store: ObjectStore):
    keys = ["a-b/x", "a/x", "a.b", "a/b/c", "B", "naïve/ключ x", "a+b %2f", "a&amp;b"]
    for key in keys:
        store.put(key, b"")
    assert list(store.list("")) == sorted(keys)


@pytest.mark.parametrize("key", ["a/three", "a", "nothing"])
def test_an_absent_object_raises_an_error_or_is_none(store: ObjectStore, key: str, tmp_path: Path):
    store.put("a/one", b"1")
    assert store.head(key) is None
    for act in (
        lambda: store.get(key),
        lambda: store.open(key),
        lambda: store.read(key, 0),
        lambda: store.copy(key, "b"),
        lambda: store.get_file(key, tmp_path / "got"),
    ):
        with pytest.raises(NotInStore):
            act()
    assert not (tmp_path / "got").exists()


def test_create_only_keeps_the_existing_object(store: ObjectStore, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"second")
    store.put("a", b"first", create_only=True)
    with pytest.raises(AlreadyExists):
        store.put("a", b"second", create_only=True)
    with pytest.raises(AlreadyExists):
        store.put("a", b"first", create_only=True)
    with pytest.raises(AlreadyExists):
        store.put_file("a", tmp_path / "file", create_only=True)
    with pytest.raises(AlreadyExists):
        store.put_file("a", large(tmp_path), create_only=True)
    assert store.get("a") == b"first"


def test_a_swap_replaces_what_was_read_and_nothing_else(store: ObjectStore):
    first = store.put("a", b"first")
    with pytest.raises(WriteConflict):
        store.put("a", b"x", if_match="0" * 32)
    second = store.put("a", b"second", if_match=first)
    assert second != first
    with pytest.raises(WriteConflict):
        store.put("a", b"third", if_match=first)
    assert store.get("a") == b"second"
    info = store.head("a")
    assert info is not None and info.etag == second
    store.delete("a")
    with pytest.raises(WriteConflict):
        store.put("a", b"third", if_match=second)
    assert store.head("a") is None


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 3, b"012"),
        (7, None, b"789"),
        (8, 100, b"89"),
        (10, None, b""),
        (99, 5, b""),
        (3, 0, b""),
    ],
)
def test_a_range_beyond_the_end_is_cut(store: ObjectStore, start, length, expected):
    store.put("a", b"0123456789")
    assert store.read("a", start, length) == expected


def test_an_empty_object_is_an_object(store: ObjectStore, tmp_path: Path):
    store.put("a", b"")
    assert store.get("a") == b"" and store.read("a", 0) == b""
    assert store.get_file("a", tmp_path / "got") == hashlib.sha256().hexdigest()
    assert (tmp_path / "got").read_bytes() == b""


def test_a_large_file_is_sent_in_parts_and_comes_back_unchanged(store, tmp_path: Path):
    path = large(tmp_path)
    etag = store.put_file("big", path, create_only=True)
    info = store.head("big")
    assert (info.size, info.etag) == (LARGE, etag)
    digest = store.get_file("big", tmp_path / "got")
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "got").read_bytes() == path.read_bytes()
    with store.open("big") as stream:
        assert stream.read() == path.read_bytes()
    store.put("big", path.read_bytes()[:-1], if_match=etag)
    assert store.get("big") == path.read_bytes()[:-1]
    store.copy("big", "other")
    assert store.get("other") == path.read_bytes()[:-1]


def test_a_copy_is_an_object_of_its_own(store: ObjectStore):
    store.put("a", b"first")
    store.copy("a", "b/c")
    store.put("a", b"second")
    store.delete("a")
    assert store.get("b/c") == b"first"


def test_an_existing_file_is_never_overwritten(store: ObjectStore, tmp_path: Path):
    store.put("a", b"new")
    (tmp_path / "mine").write_bytes(b"precious")
    with pytest.raises(Exception, match="exists"):
        store.get_file("a", tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == b"precious"


def test_an_invalid_key_reaches_no_store(store: ObjectStore):
    store.put("a", b"")
    acts = (
        lambda key: store.put(key, b"x"),
        store.get,
        store.head,
        lambda key: store.read(key, 0),
        store.delete,
        lambda key: store.copy("a", key),
    )
    for case, (key, _) in HOSTILE.items():
        for act in acts:
            assert catch(InputError, lambda act=act, key=key: act(key)), case
    assert list(store.list("")) == ["a"]


def test_a_probe_of_a_sound_store_passes_and_leaves_nothing(store: ObjectStore):
    assert find_missing_guarantee(store, "probe") is None
    assert store.check_writable() is None
    assert list(store.list("")) == []


def test_a_store_survives_a_pickle(store: ObjectStore):
    store.put("a", b"x")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"x"


def _create(start: Barrier, mine: int, store: ObjectStore) -> None:
    start.wait()
    for turn in range(5):
        try:
            store.put(f"key-{turn}", str(mine).encode() * 1000, create_only=True)
        except AlreadyExists:
            continue
        store.put(f"won-{turn}-by-{mine}", b"")


def test_exactly_one_of_concurrent_creators_wins(store: ObjectStore):
    assert race(_create, store, count=4) == [0] * 4
    for turn in range(5):
        [winner] = store.list(f"won-{turn}-by-")
        assert store.get(f"key-{turn}") == winner[-1].encode() * 1000


def _count(start: Barrier, mine: int, store: ObjectStore) -> None:
    start.wait()
    done = 0
    while done < 5:
        info = store.head("counter")
        assert info is not None
        now = int(store.get("counter"))
        try:
            store.put("counter", str(now + 1).encode(), if_match=info.etag)
            done += 1
        except WriteConflict:
            continue


def test_concurrent_swaps_lose_no_count(store: ObjectStore):
    store.put("counter", b"0")
    assert race(_count, store, count=4) == [0] * 4
    assert store.get("counter") == b"20"


@pytest.mark.parametrize("folders", [256, 5], ids=["by folder", "by page"])
def test_a_listing_of_several_pages_has_each_key_once(folders, s3, monkeypatch):
    # Pages of ten keys, not a thousand, by a parameter of boto3.
    client = s3._client
    plain = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **options: plain(**options, MaxKeys=10))
    monkeypatch.setattr(list_keys, "MAX_FOLDERS", folders)
    keys = [f"{folder}/{number}/x" for folder in ("a", "b", "b.c") for number in range(12)]
    # Some names of folders start with that of another folder, and so do some objects.
    keys += [f"v{number}/{name}" for number in range(1, 31) for name in ("x", "y")]
    keys += [f"v1/{number}" for number in range(25)] + ["top", "v1-note", "v2x"]
    for key in keys:
        s3.put(key, b"")
    for prefix in ("", "b/", "b", "v", "v1", "v1/", "v3/x", "none"):
        listed = list(s3.list(prefix))
        assert listed == sorted(key for key in keys if key.startswith(prefix)), prefix
