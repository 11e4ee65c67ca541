"""Opening a store by its URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.store.directory import DirectoryStore
from jobs.store.objects import open_store


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file://.cache/store", "here/.cache/store"),
        ("FILE://.cache/store", "here/.cache/store"),
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


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://bucket/prefix", "not available yet"),
        ("S3://bucket", "not available yet"),
        ("gs://bucket", "no store of the kind gs://"),
        ("https://example.com/store", "no store of the kind https://"),
        ("", "names no store"),
        ("  ", "names no store"),
        ("file://", "names no folder"),
        ("file:/tmp/store", "lacks the slashes"),
        ("file:///tmp/\x1b[2J", "names no store"),
        ("/tmp/a\0b", "names no store"),
    ],
)
def test_a_url_that_opens_nothing_is_a_fault_of_the_key_store(url: str, says: str):
    with pytest.raises(InputError) as caught:
        open_store(url)
    [fault] = caught.value.faults
    assert fault.key == "store"
    assert says in fault.problem
    assert "file://" in fault.remedy
    assert str(fault).isprintable()
