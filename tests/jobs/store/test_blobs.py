"""Blobs: written once, mended when rotten, never believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.adapters import commit, verify
from jobs.store.blobs import blob_key, digest_of_key
from jobs.store.digest import sha256_of_file
from jobs.store.directory import DirectoryStore
from tests.jobs.store.made import DyingStore, adapter_folder, draft


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return adapter_folder(tmp_path / "exported")


def blob_of(folder: Path) -> str:
    return blob_key(sha256_of_file(folder / "adapter_model.safetensors"))


def test_a_blob_that_is_there_is_not_sent_again(store: DirectoryStore, folder: Path):
    commit(store, folder, draft(run="r1"))
    watched = DyingStore(store)
    commit(watched, folder, draft(run="r2"))
    assert [call for call in watched.calls if call.startswith("put blobs")] == []


@pytest.mark.parametrize("rot", [b"", b"rotten", None], ids=["empty", "short", "same length"])
def test_a_rotten_blob_is_mended_by_the_next_commit(store: DirectoryStore, folder: Path, rot):
    blob = blob_of(folder)
    commit(store, folder, draft(run="r1"))
    whole = store.get(blob)
    store.put(blob, whole[:-1] + b"?" if rot is None else rot)
    again = commit(store, folder, draft(run="r2"))
    assert store.get(blob) == whole
    assert verify(store, again) == []


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (blob_key("ab" * 32), "ab" * 32),
        ("blobs/sha256/ab/cd", None),
        ("blobs/sha256/" + "a" * 64, None),
        (blob_key("ab" * 32) + "/x", None),
        ("blobs/sha256/AB/" + "a" * 62, None),
    ],
)
def test_only_a_blobs_key_names_a_digest(key: str, digest: str | None):
    assert digest_of_key(key) == digest
