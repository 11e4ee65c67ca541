"""Pulling: a folder that is whole and verified, or nothing at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.errors import DigestMismatch, InputError, NotFound, StoreError
from jobs.store.adapters import commit, pull
from jobs.store.blobs import blob_key
from jobs.store.digest import sha256_of_file
from jobs.store.directory import DirectoryStore
from jobs.store.manifest import Manifest, parse_manifest
from tests.jobs.store.made import DyingStore, Killed, adapter_folder, draft

MODEL = "adapters/chat/v1/adapter_model.safetensors"


@pytest.fixture
def manifest(store: DirectoryStore, tmp_path: Path) -> Manifest:
    return commit(store, adapter_folder(tmp_path / "exported"), draft())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize("to", ["new", "deep/new", "empty", "link"])
def test_a_pulled_folder_holds_the_files_and_the_manifest(to, store, manifest, place):
    (place / "empty").mkdir()
    (place / "link").symlink_to(place / "empty")
    seen = list[int]()
    folder = pull(store, manifest, place / to, seen=seen.append)
    assert folder == (place / to).resolve()
    assert sorted(os.listdir(folder)) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    for file in manifest.files:
        assert (folder / file.name).read_bytes() == store.get(manifest.prefix + file.name)
    assert parse_manifest((folder / "manifest.json").read_bytes(), "") == manifest
    assert sum(seen) == manifest.size


def test_a_relative_folder_is_taken_from_where_the_user_is(store, manifest, place, monkeypatch):
    monkeypatch.chdir(place)
    assert pull(store, manifest, Path("here")) == place / "here"


@pytest.mark.parametrize("there", ["file", "full", "dangling"])
def test_what_is_there_already_is_kept(there, store, manifest, place):
    (place / "file").write_text("precious")
    (place / "full").mkdir()
    (place / "full" / "file").write_text("precious")
    (place / "dangling").symlink_to(place / "file" / "x")
    before = sorted(place.rglob("*"))
    with pytest.raises((InputError, StoreError), match=r"there already|can't be written"):
        pull(store, manifest, place / there)
    assert sorted(place.rglob("*")) == before
    assert (place / "full" / "file").read_text() == "precious"


def rot(store: DirectoryStore) -> None:
    store.put(MODEL, store.get(MODEL)[:-1] + b"?")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (rot, DigestMismatch),
        (lambda store: store.put(MODEL, b""), DigestMismatch),
        (lambda store: store.delete(MODEL), NotFound),
    ],
    ids=["changed", "cut short", "absent"],
)
def test_a_rotten_file_is_taken_from_its_blob_and_without_one_leaves_nothing(
    spoil, error, store, manifest, place, caplog
):
    spoil(store)
    pull(store, manifest, place / "healed")
    [model] = [file for file in manifest.files if file.name == "adapter_model.safetensors"]
    assert sha256_of_file(place / "healed" / model.name) == model.sha256
    assert "blob was taken instead" in caplog.text
    store.put(blob_key(model.sha256), b"rotten too")
    with pytest.raises(DigestMismatch):
        pull(store, manifest, place / "new")
    store.delete(blob_key(model.sha256))
    with pytest.raises(error):
        pull(store, manifest, place / "new")
    assert [path.name for path in place.iterdir()] == ["healed"]


def test_a_death_inside_a_pull_never_shows_half_a_folder(store, manifest, place):
    for at in (1, 2):
        with pytest.raises(Killed):
            pull(DyingStore(store, at=at), manifest, place / "new")
        assert list(place.iterdir()) == []


def test_a_folder_that_was_filled_meanwhile_is_kept(store, manifest, place):
    def fill(_: int) -> None:
        (place / "new").mkdir(exist_ok=True)
        (place / "new" / "file").write_text("precious")

    with pytest.raises(StoreError, match="can't be written"):
        pull(store, manifest, place / "new", seen=fill)
    assert [path.name for path in place.rglob("*")] == ["new", "file"]


@pytest.mark.parametrize("to", ["/proc/adapter", "/proc/deep/adapter"])
def test_a_place_that_can_not_be_written_is_told(to: str, store, manifest):
    with pytest.raises(StoreError, match="can't be written"):
        pull(store, manifest, Path(to))
