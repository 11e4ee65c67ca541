"""Blobs: written once, replaced when corrupt, always verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.adapters.operations import commit, verify_adapter
from jobs.store.blobs import get_blob_key, parse_blob_key
from jobs.store.digest import compute_file_sha256
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import DyingStore, make_adapter_folder, make_draft


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_adapter_folder(tmp_path / "exported")


def find_blob(folder: Path) -> str:
    return get_blob_key(compute_file_sha256(folder / "adapter_model.safetensors"))


def test_an_existing_blob_is_not_sent_again(store: DirectoryStore, folder: Path):
    commit(store, folder, make_draft(run="r1"))
    watched = DyingStore(store)
    commit(watched, folder, make_draft(run="r2"))
    assert [call for call in watched.calls if call.startswith("put blobs")] == []


@pytest.mark.parametrize("rot", [b"", b"rotten", None], ids=["empty", "short", "same length"])
def test_a_corrupt_blob_is_replaced_by_the_next_commit(store: DirectoryStore, folder: Path, rot):
    blob = find_blob(folder)
    commit(store, folder, make_draft(run="r1"))
    intact = store.get(blob)
    store.put(blob, intact[:-1] + b"?" if rot is None else rot)
    again = commit(store, folder, make_draft(run="r2"))
    assert store.get(blob) == intact
    assert verify_adapter(store, again) == []


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (get_blob_key("ab" * 32), "ab" * 32),
        ("blobs/sha256/ab/cd", None),
        ("blobs/sha256/" + "a" * 64, None),
        (get_blob_key("ab" * 32) + "/x", None),
        ("blobs/sha256/AB/" + "a" * 62, None),
    ],
)
def test_only_the_key_of_a_blob_holds_a_digest(key: str, digest: str | None):
    assert parse_blob_key(key) == digest
