"""`GET /v1/adapters/NAME/VERSION` tells what can serve a version, as far as it can be known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs.errors import StoreError
from jobs.store.adapters.operations import commit
from jobs.store.open import open_store
from orchestrator.api.routes import adapters as adapter_routes
from orchestrator.registry import adapters
from orchestrator.registry.tables import AdapterRow
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.api.builders import ApiHarness


@pytest.fixture
def indexed(api: ApiHarness, tmp_path: Path) -> ApiHarness:
    """The service with chat v1 in its store and its registry."""
    url = api.service.config.stores[0]
    manifest = commit(open_store(url), make_adapter_folder(tmp_path / "exported"), make_draft())
    with api.service.database.write() as session:
        adapters.put(session, url, manifest, project="default")
    return api


def get_version(api: ApiHarness) -> dict[str, Any]:
    response = api.request("GET", "/v1/adapters/chat/1")
    assert response.status_code == 200, response.text
    return json.loads(response.text)


def test_a_config_that_says_too_little_has_no_servers(indexed: ApiHarness):
    assert get_version(indexed)["served_by"] == []


def test_a_store_that_does_not_answer_hides_the_servers_only(
    indexed: ApiHarness, monkeypatch: pytest.MonkeyPatch
):
    def fail(url: str) -> None:
        raise StoreError(f"{url}: no answer")

    monkeypatch.setattr(adapter_routes, "open_store", fail)
    version = get_version(indexed)
    assert version["served_by"] is None and version["manifest"]["version"] == 1


@pytest.mark.parametrize("manifest", [{}, {"kind": "of a later release"}])
def test_a_manifest_that_this_release_cannot_read_hides_the_servers_only(
    indexed: ApiHarness, manifest: dict[str, str]
):
    with indexed.service.database.write() as session:
        session.execute(update(AdapterRow).values(manifest=manifest))
    version = get_version(indexed)
    assert version["served_by"] is None and version["manifest"] == manifest
