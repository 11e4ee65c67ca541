"""The service signs the pointers that it moves, and refuses one older than its registry has."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.adapters.operations import commit, read_pointer
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.control.signing.service_trust import ServiceTrust
from orchestrator.registry import adapters
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.jobs.trust.keys import Keys
from tests.orchestrator.api.builders import ApiHarness

CURRENT = "adapters/chat/current"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    return Keys(tmp_path, monkeypatch)


@pytest.fixture
def full(api: ApiHarness, keys: Keys, tmp_path: Path) -> ObjectStore:
    """A store with chat v1 and v2, signed and indexed, and chat v3, which nobody signed."""
    url = api.service.config.stores[0]
    store, folder = open_store(url), make_adapter_folder(tmp_path / "exported")
    for number, signer in enumerate((keys.ours, keys.ours, None), start=1):
        manifest = commit(store, folder, make_draft(run=f"r{number}"), sign=signer)
        with api.service.database.write() as session:
            adapters.put(session, url, manifest, project="default")
    keys.trust()
    api.service.trust = ServiceTrust(signer=keys.ours)
    return store


def promote(api: ApiHarness, version: int) -> tuple[int, str]:
    response = api.request("POST", "/v1/adapters/chat/promote", json={"version": version})
    return response.status_code, response.text


def test_promotions_and_rollbacks_are_signed_by_the_service(api: ApiHarness, full: ObjectStore):
    for version in (1, 2):
        assert promote(api, version)[0] == 200
    assert api.request("POST", "/v1/adapters/chat/rollback").json()["move"] == 3
    pointer = read_pointer(full, "chat")
    assert pointer is not None and (pointer.version, pointer.signature is not None) == (1, True)


def test_an_unsigned_version_is_not_promoted(api: ApiHarness, full: ObjectStore):
    status, text = promote(api, 3)
    assert status == 409 and "chat@v3: it is not signed" in text
    assert full.head(CURRENT) is None


def test_a_pointer_older_than_the_registrys_is_refused_by_a_service_that_never_saw_it(
    api: ApiHarness, full: ObjectStore, keys: Keys, tmp_path: Path
):
    promote(api, 1)
    old = full.get(CURRENT)
    promote(api, 2)
    full.put(CURRENT, old)
    keys.forget_moves(str(tmp_path / "another replica"))
    refused = api.request("POST", "/v1/adapters/chat/rollback")
    assert refused.status_code == 409
    assert "at move 1 (v1), but move 2 was seen" in refused.text
    assert promote(api, 2)[0] == 200
    pointer = read_pointer(full, "chat")
    assert pointer is not None and (pointer.version, pointer.moves[-1].number) == (2, 3)
