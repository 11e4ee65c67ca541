"""Listing adapters and resolving names."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError, NotInStore
from jobs.store.adapters.manifest import MAX_MANIFEST_BYTES, BadManifest
from jobs.store.adapters.operations import (
    commit,
    resolve_adapter,
    scan_adapters,
)
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import DyingStore, make_adapter_folder, make_draft


@pytest.fixture
def full(store: DirectoryStore, tmp_path: Path) -> DirectoryStore:
    """chat v1, v2, v10 (after an unfinished v9) and zoo v1."""
    folder = make_adapter_folder(tmp_path / "exported")
    commit(store, folder, make_draft(run="r1"))
    commit(store, folder, make_draft(run="r2"))
    for number in range(3, 10):
        store.put(f"adapters/chat/v{number}/.claim", b"{}")
    store.put("adapters/chat/v9/adapter_config.json", b"{}")
    commit(store, folder, make_draft(run="r3"))
    commit(store, folder, make_draft(run="r4", name="zoo"))
    return store


def test_an_empty_store_lists_nothing_and_creates_nothing(store: DirectoryStore):
    assert scan_adapters(store)[0] == []
    assert scan_adapters(store)[1] == []
    assert not store.root.exists()


def test_only_what_is_committed_is_listed_in_the_order_of_versions(full: DirectoryStore):
    labels = [adapter.label for adapter in scan_adapters(full)[0]]
    assert labels == ["chat@v1", "chat@v2", "chat@v10", "zoo@v1"]


@pytest.mark.parametrize(
    ("reference", "label"),
    [
        ("chat", "chat@v10"),
        ("chat@v2", "chat@v2"),
        ("chat@2", "chat@v2"),
        ("zoo", "zoo@v1"),
    ],
)
def test_a_name_resolves_to_its_newest_or_its_named_version(
    reference: str, label: str, full: DirectoryStore
):
    assert resolve_adapter(full, reference).label == label


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("cat", "The adapter cat is not in the store. Available: chat, zoo."),
        ("chat@v3", "chat@v3 is not in the store. Available: chat@v1, chat@v2, chat@v10."),
        ("chat@9", "chat@v9 is not in the store. Available: chat@v1, chat@v2, chat@v10."),
        ("cha", "The adapter cha is not in the store. Available: chat, zoo."),
    ],
)
def test_an_absent_adapter_is_reported_with_the_existing_ones(
    reference: str, says: str, full: DirectoryStore
):
    with pytest.raises(NotInStore) as caught:
        resolve_adapter(full, reference)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    "reference",
    [
        "", "@", "@v1", "chat@", "chat@v0", "chat@v01", "chat@-1", "chat@latest", "chat@v1@v2",
        "chat@v1\n", "chat@v" + "9" * 5000, "chat@٢", "../chat", "..", ".", "/etc/passwd", "a/b",
        "a\\b", "a\0", "chat\n", "\x1b[2J", "-chat", ".chat", "a..b", "a" * 64, "\ud800", "chat ",
    ],
)  # fmt: skip
def test_an_invalid_name_is_refused_with_a_printable_message(reference: str, store: DirectoryStore):
    with pytest.raises(InputError) as caught:
        resolve_adapter(store, reference)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


def test_a_corrupt_manifest_is_reported_and_breaks_nothing_else(full: DirectoryStore):
    full.put("adapters/chat/v2/manifest.json", b'{"name": "chat"')
    full.put("adapters/bad name/v1/manifest.json", b"{}")
    full.put("adapters/zoo/latest/manifest.json", b"{}")
    full.put("adapters/zoo/v2/manifest.json", full.get("adapters/zoo/v1/manifest.json"))
    full.put("adapters/zoo/v3/manifest.json", b" " * (MAX_MANIFEST_BYTES + 1))
    assert [adapter.label for adapter in scan_adapters(full)[0]] == [
        "chat@v1",
        "chat@v10",
        "zoo@v1",
    ]
    assert {fault.key: fault.problem[:20] for fault in scan_adapters(full)[1]} == {
        "adapters/bad name/v1/manifest.json": "the folder is not <n",
        "adapters/chat/v2/manifest.json": 'invalid JSON: "Expec',
        "adapters/zoo/latest/manifest.json": "the folder is not <n",
        "adapters/zoo/v2/manifest.json": "this is the manifest",
        "adapters/zoo/v3/manifest.json": "4194305 bytes exceed",
    }


def test_a_manifest_that_is_too_large_is_not_even_read(store: DirectoryStore):
    store.put("adapters/chat/v1/manifest.json", b" " * (MAX_MANIFEST_BYTES + 1))
    watched = DyingStore(store)
    with pytest.raises(BadManifest, match="exceed the limit"):
        resolve_adapter(watched, "chat")
    assert not [call for call in watched.calls if call.startswith(("get", "open"))]


def test_a_corrupt_newest_version_is_an_error_and_no_older_version_is_returned(
    full: DirectoryStore,
):
    full.put("adapters/chat/v10/manifest.json", b"nonsense")
    with pytest.raises(BadManifest, match="v10"):
        resolve_adapter(full, "chat")
    assert resolve_adapter(full, "chat@v2").version == 2


def test_other_objects_beside_the_versions_are_ignored(full: DirectoryStore):
    full.put("adapters/zoo/current.json", b"v2")
    full.put("adapters/manifest.json", b"{}")
    full.put("adapters/chat/v1/sub/manifest.json", b"{}")
    assert len(scan_adapters(full)[0]) == 4
    assert scan_adapters(full)[1] == []
    assert resolve_adapter(full, "chat").version == 10
