"""Pulls: a complete and verified folder, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.errors import DigestMismatch, InputError, NotInStore, StoreError
from jobs.store.adapters.manifest import Manifest, parse_manifest
from jobs.store.adapters.operations import commit, pull
from jobs.store.blobs import get_blob_key
from jobs.store.digest import compute_file_sha256
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import DyingStore, Killed, make_adapter_folder, make_draft

MODEL = "adapters/chat/v1/adapter_model.safetensors"


@pytest.fixture
def manifest(store: DirectoryStore, tmp_path: Path) -> Manifest:
    return commit(store, make_adapter_folder(tmp_path / "exported"), make_draft())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize("to", ["new", "deep/new", "empty", "link"])
def test_a_pulled_folder_holds_the_files_and_the_manifest(to, store, manifest, folder):
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(folder / "empty")
    lengths = list[int]()
    subfolder = pull(store, manifest, folder / to, on_bytes=lengths.append)
    assert subfolder == (folder / to).resolve()
    assert sorted(os.listdir(subfolder)) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    for file in manifest.files:
        assert (subfolder / file.name).read_bytes() == store.get(manifest.prefix + file.name)
    assert parse_manifest((subfolder / "manifest.json").read_bytes(), "") == manifest
    assert sum(lengths) == manifest.size


def test_a_relative_folder_starts_at_the_working_directory(store, manifest, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert pull(store, manifest, Path("here")) == folder / "here"


@pytest.mark.parametrize("target", ["file", "full", "dangling"])
def test_an_existing_target_is_never_overwritten(target, store, manifest, folder):
    (folder / "file").write_text("precious")
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("precious")
    (folder / "dangling").symlink_to(folder / "file" / "x")
    before = sorted(folder.rglob("*"))
    with pytest.raises((InputError, StoreError), match=r"already exists|cannot be written"):
        pull(store, manifest, folder / target)
    assert sorted(folder.rglob("*")) == before
    assert (folder / "full" / "file").read_text() == "precious"


def rot(store: DirectoryStore) -> None:
    store.put(MODEL, store.get(MODEL)[:-1] + b"?")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (rot, DigestMismatch),
        (lambda store: store.put(MODEL, b""), DigestMismatch),
        (lambda store: store.delete(MODEL), NotInStore),
    ],
    ids=["changed", "cut short", "absent"],
)
def test_a_corrupt_file_is_read_from_its_blob_or_nothing_is_pulled(
    spoil, error, store, manifest, folder, caplog
):
    spoil(store)
    pull(store, manifest, folder / "healed")
    [model] = [file for file in manifest.files if file.name == "adapter_model.safetensors"]
    assert compute_file_sha256(folder / "healed" / model.name) == model.sha256
    assert "blob is intact and was used" in caplog.text
    store.put(get_blob_key(model.sha256), b"rotten too")
    with pytest.raises(DigestMismatch):
        pull(store, manifest, folder / "new")
    store.delete(get_blob_key(model.sha256))
    with pytest.raises(error):
        pull(store, manifest, folder / "new")
    assert [path.name for path in folder.iterdir()] == ["healed"]


def test_a_death_inside_a_pull_never_shows_half_a_folder(store, manifest, folder):
    for at in (1, 2):
        with pytest.raises(Killed):
            pull(DyingStore(store, at=at), manifest, folder / "new")
        assert list(folder.iterdir()) == []


def test_a_folder_that_was_filled_meanwhile_is_not_overwritten(store, manifest, folder):
    def fill(_: int) -> None:
        (folder / "new").mkdir(exist_ok=True)
        (folder / "new" / "file").write_text("precious")

    with pytest.raises(StoreError, match="cannot be written"):
        pull(store, manifest, folder / "new", on_bytes=fill)
    assert [path.name for path in folder.rglob("*")] == ["new", "file"]


@pytest.mark.parametrize("to", ["/proc/adapter", "/proc/deep/adapter"])
def test_an_unwritable_target_raises_a_store_error(to: str, store, manifest):
    with pytest.raises(StoreError, match="cannot be written"):
        pull(store, manifest, Path(to))
