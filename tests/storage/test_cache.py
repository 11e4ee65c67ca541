"""The cache of s3://: fetched once, whole, bounded, and safe for several processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobs.data.files import resolve
from jobs.errors import InputError, NotFound
from jobs.model_files import MODEL_FILES, model_folder
from jobs.store import cache as cache_module
from jobs.store.cache import cached_files, cached_folder
from jobs.store.s3 import S3Store
from tests.jobs.store.made import race, tensors


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    let_go()


def let_go() -> None:
    """What the end of a process does."""
    for lock in cache_module._used.values():
        lock.close()
    cache_module._used.clear()


@pytest.fixture
def model(s3: S3Store, cache: Path) -> str:
    s3.put("base/config.json", b"{}")
    s3.put("base/model.safetensors", tensors())
    s3.put("base/pytorch_model.bin", b"pickled")
    s3.put("base/more/config.json", b"deeper")
    return s3.url("base")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_its_configs_and_tensors_and_nothing_pickled(model: str):
    folder = model_folder(model)
    assert folder is not None
    assert names(folder) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == tensors()


def test_what_is_there_is_not_fetched_again(model: str, cache: Path, s3: S3Store):
    first = cached_folder(model, MODEL_FILES)
    assert first is not None
    before = (first / "config.json").stat()
    assert cached_folder(model, MODEL_FILES) == first
    assert (first / "config.json").stat().st_ino == before.st_ino


def test_what_changed_in_the_bucket_is_fetched_anew(model: str, s3: S3Store, cache: Path):
    first = cached_folder(model, MODEL_FILES)
    s3.put("base/config.json", b'{"new": 1}')
    second = cached_folder(model, MODEL_FILES)
    assert second is not None and second != first
    assert json.loads((second / "config.json").read_text()) == {"new": 1}


@pytest.mark.parametrize("spoil", ["changed", "shorter", "gone", "no seal"])
def test_what_was_spoilt_on_this_machine_is_fetched_anew(spoil: str, model: str, cache: Path):
    folder = cached_folder(model, MODEL_FILES)
    assert folder is not None
    path = folder / "model.safetensors"
    if spoil == "changed":
        path.write_bytes(tensors()[:-1] + b"?")
        os.utime(path, (1, 1))
    elif spoil == "shorter":
        path.write_bytes(b"")
    elif spoil == "gone":
        path.unlink()
    else:
        (folder.parent / "sealed.json").write_text("{}")
    assert cached_folder(model, MODEL_FILES) == folder
    assert path.read_bytes() == tensors()


def test_rows_are_one_file_a_glob_or_what_lies_under_a_prefix(s3: S3Store, cache: Path):
    for name in ("a.jsonl", "b.jsonl", "c.csv", "readme.md", "_hidden.jsonl"):
        s3.put(f"rows/{name}", name.encode())
    s3.put("rows/deep/d.jsonl", b"deep")

    def found(where: str) -> list[str]:
        return [path.name for path in resolve(s3.url("") + where)]

    assert found("/rows/a.jsonl") == ["a.jsonl"]
    assert found("/rows/*.jsonl") == ["a.jsonl", "b.jsonl", "d.jsonl"]
    assert found("/rows/") == found("/rows") == ["a.jsonl", "b.jsonl", "c.csv"]
    assert found("/rows/[ab].jsonl") == ["a.jsonl", "b.jsonl"]
    for nothing in ("/rows/z.jsonl", "/rows/readme.md", "/nowhere/"):
        with pytest.raises(InputError, match="no data file under"):
            found(nothing)


@pytest.mark.parametrize("key", ["base/\x1b[2J.json", "base/\u202ex.json"])
def test_a_hostile_key_in_the_bucket_leads_nowhere(key: str, s3: S3Store, model: str, cache: Path):
    s3._client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/{key}", Body=b"hostile")
    with pytest.raises(InputError) as refused:
        model_folder(model)
    assert str(refused.value).isprintable()
    assert not list(cache.glob("*/files"))


def test_a_full_cache_gives_up_what_was_not_used_for_longest(s3, cache, monkeypatch):
    monkeypatch.setenv("SLORA_CACHE_BYTES", "250")
    for number in range(4):
        s3.put(f"rows/{number}.txt", str(number).encode() * 100)
        [path] = cached_files(s3.url(f"rows/{number}.txt"), (".txt",))
        assert path.read_bytes() == str(number).encode() * 100
        os.utime(path.parents[1] / "sealed.json", (number + 1, number + 1))
        let_go()
    kept = sorted(path.read_bytes()[:1] for path in cache.glob("*/files/*"))
    assert kept == [b"2", b"3"]


def test_what_is_used_is_not_given_up_and_that_is_told(s3, cache, monkeypatch):
    monkeypatch.setenv("SLORA_CACHE_BYTES", "150")
    for number in range(2):
        s3.put(f"rows/{number}.txt", b"x" * (100 + number))
    [path] = cached_files(s3.url("rows/0.txt"), (".txt",))
    with pytest.raises(InputError, match="in use"):
        cached_files(s3.url("rows/1.txt"), (".txt",))
    assert path.exists()
    s3.put("rows/2.txt", b"x" * 151)
    with pytest.raises(InputError, match="more than the cache may hold"):
        cached_files(s3.url("rows/2.txt"), (".txt",))


def _die_while_fetching(start: Barrier, _: int, url: str) -> None:
    class Dying(S3Store):
        def get_file(self, key: str, path: Path) -> str:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    store = cache_module.open_store(url)
    assert isinstance(store, S3Store)
    wanted = cache_module._wanted(store, ["config.json"], MODEL_FILES)
    cache_module._at_hand(Dying(store.bucket, store.prefix), wanted)


@pytest.mark.parametrize("again", [True, False], ids=["by the same fetch", "by any other"])
def test_what_a_killed_fetch_left_is_taken_away(again: bool, model: str, cache: Path, s3: S3Store):
    assert race(_die_while_fetching, model, count=1) == [-signal.SIGKILL]
    [left] = cache.glob(".*-*")
    s3.put("other/config.json", b"{}")
    folder = cached_folder(model if again else s3.url("other"), ("config.json",))
    assert folder is not None and names(folder) == ["config.json"]
    assert not left.exists()


def _fetch(start: Barrier, mine: int, url: str, seen: Path) -> None:
    start.wait()
    folder = cached_folder(url, MODEL_FILES)
    assert folder is not None
    path = folder / "model.safetensors"
    assert path.read_bytes() == tensors()
    (seen / str(mine)).write_text(str((path.stat().st_ino, path.stat().st_mtime_ns)))


def test_processes_that_want_one_model_at_once_fetch_it_once(model: str, cache: Path, tmp_path):
    (tmp_path / "seen").mkdir()
    assert race(_fetch, model, tmp_path / "seen", count=8) == [0] * 8
    # One file, of one fetch: another would have put another in its place.
    assert len({path.read_text() for path in (tmp_path / "seen").iterdir()}) == 1
    assert len(list(cache.glob("*/sealed.json"))) == 1
    assert not list(cache.glob(".*-*"))


def test_a_fetch_that_fails_leaves_nothing_that_counts(s3: S3Store, model: str, cache: Path):
    class Losing(S3Store):
        def get_file(self, key: str, path: Path) -> str:
            path.write_bytes(b"half")
            raise NotFound(key)

    wanted = cache_module._wanted(s3, ["base/config.json"], MODEL_FILES)
    with pytest.raises(NotFound):
        cache_module._at_hand(Losing(s3.bucket, s3.prefix), wanted)
    assert not list(cache.glob("*/sealed.json")) and not list(cache.glob("*/files"))
    folder = model_folder(model)
    assert folder is not None
