"""`slora adapters --service`: the adapters of the registry, promotion and rollback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.errors import StoreUnreachable
from jobs.store.adapters.operations import read_pointer
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.registry.rebuild.rebuild import rebuild
from tests.orchestrator.cli.commands.conftest import CommandHarness
from tests.orchestrator.deployments.builders import commit_version as commit_lora
from tests.orchestrator.registry.stores import DONE, FAILED, commit_version


@pytest.fixture
def store(cli: CommandHarness, tmp_path: Path) -> ObjectStore:
    """Return a store with two versions of an adapter that the registry knows."""
    opened = open_store(cli.api.service.config.stores[0])
    for run in (DONE, FAILED):
        commit_version(opened, tmp_path / "made", name="chat", run=run)
    rebuild(cli.api.service.database, opened)
    return opened


def test_adapters_are_listed_without_looking_into_a_store(cli: CommandHarness, store: ObjectStore):
    result = cli.ask("adapters", "list", "--service", cli.url)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "chat@v1" in result.stdout and "chat@v2" in result.stdout
    output = json.loads(cli.ask("adapters", "list", "--service", cli.url, "--json").stdout)
    assert [adapter["label"] for adapter in output["adapters"]] == ["chat@v1", "chat@v2"]


def test_a_version_is_promoted_and_rolled_back_through_the_service(
    cli: CommandHarness, store: ObjectStore
):
    def ask(*words: str):
        return cli.ask("adapters", *words, "--service", cli.url)

    assert "chat@v2" in ask("show", "chat").stdout
    for version in (1, 2):
        result = ask("promote", f"chat@v{version}")
        assert f"chat now refers to chat@v{version}" in result.stdout, result.output
    assert "chat now refers to chat@v1" in ask("rollback", "chat").stdout
    pointer = read_pointer(store, "chat")
    assert pointer is not None and pointer.version == 1
    text = ask("show", "chat").stdout
    assert "chat@v1" in text and " yes" in text
    assert ask("promote", "chat@v9").exit_code == 2
    assert ask("show", "nobody").exit_code == 2


def test_a_viewer_may_look_and_not_move(cli: CommandHarness, store: ObjectStore):
    words = ("--service", cli.url)
    assert cli.ask("adapters", "show", "chat", *words, scope="viewer").exit_code == 0
    result = cli.ask("adapters", "promote", "chat@v1", *words, scope="viewer")
    assert result.exit_code == 3 and read_pointer(store, "chat") is None


def test_a_service_tells_what_serves_a_version_as_its_store_does(
    cli: CommandHarness, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit_lora(store, tmp_path / "folders")
    rebuild(cli.api.service.database, store)
    words = ("adapters", "show", "chat@v3")
    remote = cli.ask(*words, "--service", cli.url, "--json")
    local = cli.ask(*words, "--store", store.url(""), "--json")
    options = json.loads(remote.stdout)["served_by"]
    assert options == json.loads(local.stdout)["served_by"] and len(options) > 1, remote.output
    text = cli.ask(*words, "--service", cli.url).stdout
    assert "served by vLLM:" in text and "--lora-modules chat=FOLDER" in text

    def fail(*_: object) -> None:
        raise StoreUnreachable("store", "timed out")

    monkeypatch.setattr("orchestrator.api.routes.adapters.read_adapter_config", fail)
    result = cli.ask(*words, "--service", cli.url)
    assert result.exit_code == 0 and "could not read it" in " ".join(result.stderr.split())
