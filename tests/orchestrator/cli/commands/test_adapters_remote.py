"""`slora adapters --service`: what the service knows, and the same moves through its door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.store.adapters.operations import read_pointer
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.registry.rebuild.rebuild import rebuild
from tests.orchestrator.cli.commands.conftest import Desk
from tests.orchestrator.registry.stores import DONE, FAILED, commit_version


@pytest.fixture
def store(desk: Desk, tmp_path: Path) -> ObjectStore:
    """With two versions of an adapter, which the registry knows."""
    opened = open_store(desk.door.service.config.stores[0])
    for run in (DONE, FAILED):
        commit_version(opened, tmp_path / "made", name="chat", run=run)
    rebuild(desk.door.service.database, opened)
    return opened


def test_adapters_are_listed_without_looking_into_a_store(desk: Desk, store: ObjectStore):
    result = desk.ask("adapters", "list", "--service", desk.url)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "chat@v1" in result.stdout and "chat@v2" in result.stdout
    told = json.loads(desk.ask("adapters", "list", "--service", desk.url, "--json").stdout)
    assert [one["label"] for one in told["adapters"]] == ["chat@v1", "chat@v2"]


def test_a_version_is_promoted_and_rolled_back_through_the_service(desk: Desk, store: ObjectStore):
    def ask(*words: str):
        return desk.ask("adapters", *words, "--service", desk.url)

    assert "chat@v2" in ask("show", "chat").stdout
    for version in (1, 2):
        result = ask("promote", f"chat@v{version}")
        assert f"chat means chat@v{version} now" in result.stdout, result.output
    assert "chat means chat@v1 now" in ask("rollback", "chat").stdout
    pointer = read_pointer(store, "chat")
    assert pointer is not None and pointer.version == 1
    shown = ask("show", "chat").stdout
    assert "chat@v1" in shown and " yes" in shown
    assert ask("promote", "chat@v9").exit_code == 2
    assert ask("show", "nobody").exit_code == 2


def test_a_viewer_may_look_and_not_move(desk: Desk, store: ObjectStore):
    words = ("--service", desk.url)
    assert desk.ask("adapters", "show", "chat", *words, scope="viewer").exit_code == 0
    result = desk.ask("adapters", "promote", "chat@v1", *words, scope="viewer")
    assert result.exit_code == 3 and read_pointer(store, "chat") is None
