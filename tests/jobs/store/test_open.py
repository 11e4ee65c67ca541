"""Opening a store by its URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.store.local import DirectoryStore
from jobs.store.open import open_store
from jobs.store.s3.s3_store import S3Store


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file://.cache/store", "here/.cache/store"),
        (".cache/store", "here/.cache/store"),
        ("file://{tmp}/elsewhere", "elsewhere"),
        ("{tmp}/elsewhere", "elsewhere"),
        ("file://with space/100%", "here/with space/100%"),
    ],
)
def test_a_folder_is_resolved_when_the_store_is_opened(
    url: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = open_store(url.format(tmp=tmp_path))
    monkeypatch.chdir("/")
    assert isinstance(store, DirectoryStore)
    assert store.root == tmp_path / expected


def test_a_relative_folder_may_start_elsewhere(tmp_path: Path):
    assert open_store("file://store", root=tmp_path).url("a/b") == f"file://{tmp_path}/store/a/b"


def test_a_store_opens_again_by_its_own_url(tmp_path: Path):
    store = open_store(f"file://{tmp_path}/with space%20")
    store.put("a", b"x")
    store.put("folder/b", b"y")
    assert open_store(store.url("folder/")).get("b") == b"y"
    assert open_store(store.url("")).get("a") == b"x"


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "s3://bucket/a/b/"])
def test_a_bucket_is_opened_without_a_request(url: str):
    store = open_store(url)
    assert isinstance(store, S3Store)
    assert store.url("c/d") == "s3://bucket/a/b/c/d"
    assert store.url("") == "s3://bucket/a/b"


@pytest.mark.parametrize("prefix", ["../x", "a//b", ".tmp", "a\\b"])
def test_a_prefix_must_be_a_valid_key(prefix: str):
    with pytest.raises(InputError):
        open_store(f"s3://bucket/{prefix}")


def test_credentials_in_a_url_are_never_printed():
    with pytest.raises(InputError) as caught:
        open_store("s3://key:s3cr3t@bucket/prefix")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "not a valid bucket name"),
        ("s3://Bucket_1/prefix", "not a valid bucket name"),
        ("s3://key:s3cr3t@bucket/prefix", "must not hold credentials"),
        ("gs://bucket", "gs:// is not supported"),
        ("https://example.com/store", "https:// is not supported"),
        ("", "not a URL of a store"),
        ("  ", "not a URL of a store"),
        ("file://", "has no path"),
        ("file:///tmp/\x1b[2J", "not a URL of a store"),
        ("/tmp/a\0b", "not a URL of a store"),
    ],
)
def test_an_invalid_url_is_a_fault_of_the_key_store(url: str, says: str):
    with pytest.raises(InputError) as caught:
        open_store(url)
    [fault] = caught.value.faults
    assert fault.key == "store"
    assert says in fault.problem
    assert "file://" in fault.remedy
    assert str(fault).isprintable()
