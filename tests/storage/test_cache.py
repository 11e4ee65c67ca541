"""The cache of s3://: complete, bounded, fetched once, and safe for several processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobs.errors import InputError, NotInStore
from jobs.inspect.datasets.file_selection import resolve_files
from jobs.inspect.model_folder import MODEL_FILES, find_model_folder
from jobs.store import cache as cache_module
from jobs.store.cache import fetch_files, fetch_folder
from jobs.store.s3.s3_store import S3Store
from tests.jobs.store.builders import encode_text_tensor, race


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    release_locks()


def release_locks() -> None:
    """Release the locks, as the end of the process does."""
    for lock in cache_module._held_locks.values():
        lock.close()
    cache_module._held_locks.clear()


@pytest.fixture
def model(s3: S3Store, cache: Path) -> str:
    s3.put("base/config.json", b"{}")
    s3.put("base/model.safetensors", encode_text_tensor())
    s3.put("base/pytorch_model.bin", b"pickled")
    s3.put("base/more/config.json", b"deeper")
    return s3.url("base")


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_fetched_as_configs_and_tensors_without_pickles(model: str):
    folder = find_model_folder(model)
    assert folder is not None
    assert list_names(folder) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == encode_text_tensor()


def test_a_cached_model_is_not_fetched_again(model: str, cache: Path, s3: S3Store):
    first = fetch_folder(model, MODEL_FILES)
    assert first is not None
    before = (first / "config.json").stat()
    assert fetch_folder(model, MODEL_FILES) == first
    assert (first / "config.json").stat().st_ino == before.st_ino


def test_an_object_that_changed_in_the_bucket_is_fetched_again(
    model: str, s3: S3Store, cache: Path
):
    first = fetch_folder(model, MODEL_FILES)
    s3.put("base/config.json", b'{"new": 1}')
    second = fetch_folder(model, MODEL_FILES)
    assert second is not None and second != first
    assert json.loads((second / "config.json").read_text()) == {"new": 1}


@pytest.mark.parametrize("spoil", ["changed", "shorter", "gone", "no seal"])
def test_a_file_that_was_damaged_locally_is_fetched_again(spoil: str, model: str, cache: Path):
    folder = fetch_folder(model, MODEL_FILES)
    assert folder is not None
    path = folder / "model.safetensors"
    if spoil == "changed":
        path.write_bytes(encode_text_tensor()[:-1] + b"?")
        os.utime(path, (1, 1))
    elif spoil == "shorter":
        path.write_bytes(b"")
    elif spoil == "gone":
        path.unlink()
    else:
        (folder.parent / "sealed.json").write_text("{}")
    assert fetch_folder(model, MODEL_FILES) == folder
    assert path.read_bytes() == encode_text_tensor()


def test_rows_are_a_file_a_glob_or_a_prefix(s3: S3Store, cache: Path):
    for name in ("a.jsonl", "b.jsonl", "c.csv", "readme.md", "_hidden.jsonl"):
        s3.put(f"rows/{name}", name.encode())
    s3.put("rows/deep/d.jsonl", b"deep")

    def list_fetched(where: str) -> list[str]:
        return [path.name for path in resolve_files(s3.url("") + where)]

    for name in ("a.jsonl", "_hidden.jsonl"):
        assert list_fetched(f"/rows/{name}") == [name]
    assert list_fetched("/rows/*.jsonl") == ["a.jsonl", "b.jsonl", "d.jsonl"]
    everything = ["a.jsonl", "b.jsonl", "c.csv", "d.jsonl"]
    assert list_fetched("/rows/") == list_fetched("/rows") == everything
    assert list_fetched("/rows/[ab].jsonl") == ["a.jsonl", "b.jsonl"]
    for nothing in ("/rows/z.jsonl", "/rows/readme.md", "/nowhere/"):
        with pytest.raises(InputError, match="no data file under"):
            list_fetched(nothing)


@pytest.mark.parametrize("key", ["base/\x1b[2J.json", "base/\u202ex.json"])
def test_an_invalid_key_in_the_bucket_is_refused(key: str, s3: S3Store, model: str, cache: Path):
    s3._client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/{key}", Body=b"hostile")
    with pytest.raises(InputError) as refused:
        find_model_folder(model)
    assert str(refused.value).isprintable()
    assert not list(cache.glob("*/files"))


def test_a_full_cache_evicts_the_least_recently_used_entry(s3, cache, monkeypatch):
    monkeypatch.setenv("SLORA_CACHE_BYTES", "250")
    for number in range(4):
        s3.put(f"rows/{number}.txt", str(number).encode() * 100)
        [path] = fetch_files(s3.url(f"rows/{number}.txt"), (".txt",))
        assert path.read_bytes() == str(number).encode() * 100
        os.utime(path.parents[1] / "sealed.json", (number + 1, number + 1))
        release_locks()
    remaining = sorted(path.read_bytes()[:1] for path in cache.glob("*/files/*"))
    assert remaining == [b"2", b"3"]


def test_an_entry_in_use_is_not_evicted_and_the_error_says_so(s3, cache, monkeypatch):
    monkeypatch.setenv("SLORA_CACHE_BYTES", "150")
    for number in range(2):
        s3.put(f"rows/{number}.txt", b"x" * (100 + number))
    [path] = fetch_files(s3.url("rows/0.txt"), (".txt",))
    with pytest.raises(InputError, match="in use"):
        fetch_files(s3.url("rows/1.txt"), (".txt",))
    assert path.exists()
    s3.put("rows/2.txt", b"x" * 151)
    with pytest.raises(InputError, match="exceed the limit of the cache"):
        fetch_files(s3.url("rows/2.txt"), (".txt",))


def _die_while_fetching(start: Barrier, _: int, url: str) -> None:
    class Dying(S3Store):
        def get_file(self, key: str, path: Path) -> str:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    store = cache_module.open_store(url)
    assert isinstance(store, S3Store)
    target = cache_module._list_items(store, ["config.json"], MODEL_FILES)
    cache_module._ensure_cached(Dying(store.bucket, store.prefix), target)


@pytest.mark.parametrize("again", [True, False], ids=["by the same fetch", "by any other"])
def test_leftovers_of_a_killed_fetch_are_removed(again: bool, model: str, cache: Path, s3: S3Store):
    assert race(_die_while_fetching, model, count=1) == [-signal.SIGKILL]
    [leftovers] = cache.glob(".*-*")
    s3.put("other/config.json", b"{}")
    folder = fetch_folder(model if again else s3.url("other"), ("config.json",))
    assert folder is not None and list_names(folder) == ["config.json"]
    assert not leftovers.exists()


def _fetch_in_process(start: Barrier, mine: int, url: str, results: Path) -> None:
    start.wait()
    folder = fetch_folder(url, MODEL_FILES)
    assert folder is not None
    path = folder / "model.safetensors"
    assert path.read_bytes() == encode_text_tensor()
    (results / str(mine)).write_text(str((path.stat().st_ino, path.stat().st_mtime_ns)))


def test_processes_that_need_a_model_at_once_fetch_it_once(model: str, cache: Path, tmp_path):
    (tmp_path / "seen").mkdir()
    assert race(_fetch_in_process, model, tmp_path / "seen", count=8) == [0] * 8
    # The same file, from one fetch: a second fetch would have replaced it.
    assert len({path.read_text() for path in (tmp_path / "seen").iterdir()}) == 1
    assert len(list(cache.glob("*/sealed.json"))) == 1
    assert not list(cache.glob(".*-*"))


def test_a_failed_fetch_leaves_no_entry(s3: S3Store, model: str, cache: Path):
    class Losing(S3Store):
        def get_file(self, key: str, path: Path) -> str:
            path.write_bytes(b"half")
            raise NotInStore(key)

    target = cache_module._list_items(s3, ["base/config.json"], MODEL_FILES)
    with pytest.raises(NotInStore):
        cache_module._ensure_cached(Losing(s3.bucket, s3.prefix), target)
    assert not list(cache.glob("*/sealed.json")) and not list(cache.glob("*/files"))
    folder = find_model_folder(model)
    assert folder is not None
