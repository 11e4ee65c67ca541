"""Signatures and signed pointers, in a folder and in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import Untrusted
from jobs.store.adapters.operations import (
    commit,
    promote,
    pull,
    resolve_adapter,
    rollback,
    scan_adapters,
)
from jobs.store.base import ObjectStore
from jobs.store.trust.version_trust import sign_version
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.jobs.trust.keys import Keys

CURRENT = "adapters/chat/current"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    return Keys(tmp_path, monkeypatch)


def test_a_version_is_refused_until_it_is_signed(store: ObjectStore, keys: Keys, tmp_path: Path):
    manifest = commit(store, make_adapter_folder(tmp_path / "exported"), make_draft())
    keys.trust()
    with pytest.raises(Untrusted, match="not signed"):
        resolve_adapter(store, "chat")
    for signer in (keys.theirs, keys.ours, keys.ours):
        sign_version(store, manifest, "default", signer)
    assert resolve_adapter(store, "chat") == manifest
    assert scan_adapters(store) == ([manifest], [])
    assert (pull(store, manifest, tmp_path / "pulled") / "manifest.sig").is_file()


def test_a_pointer_that_was_rolled_back_by_hand_is_refused(
    store: ObjectStore, keys: Keys, tmp_path: Path
):
    folder = make_adapter_folder(tmp_path / "exported")
    for run in ("r1", "r2"):
        commit(store, folder, make_draft(run=run), sign=keys.ours)
    keys.trust()
    promote(store, "chat", 1, signer=keys.ours)
    old = store.get(CURRENT)
    promote(store, "chat", 2, signer=keys.ours)
    assert rollback(store, "chat", signer=keys.ours).moves[-1].number == 3
    assert resolve_adapter(store, "chat").version == 1
    store.put(CURRENT, old)
    with pytest.raises(Untrusted, match=r"at move 1 \(v1\), but move 3 was seen"):
        resolve_adapter(store, "chat")
    assert promote(store, "chat", 2, signer=keys.ours).moves[-1].number == 4
    assert resolve_adapter(store, "chat").version == 2
