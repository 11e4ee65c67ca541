"""`slora adapters`, commands that change the store: exit codes and messages."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.store.adapters.operations import commit, resolve_adapter
from jobs.store.adapters.outbox import add_to_outbox
from jobs.store.blobs import get_blob_key
from jobs.store.local import DirectoryStore
from orchestrator.cli.main import app
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.jobs.store.test_signing import key_pair


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def full(store: DirectoryStore, tmp_path: Path) -> DirectoryStore:
    """Return a store with chat v1 and v2."""
    folder = make_adapter_folder(tmp_path / "exported")
    commit(store, folder, make_draft(run="r1"))
    commit(store, folder, make_draft(run="r2", parent="chat@v1"))
    return store


def ask(store: DirectoryStore, *words: str) -> Result:
    return CliRunner().invoke(app, ["adapters", *words, "--store", store.url("")])


def test_a_promotion_and_its_rollback_move_the_current_version(full: DirectoryStore):
    assert "chat now refers to chat@v1" in ask(full, "promote", "chat@v1").stdout
    assert "chat@v1" in ask(full, "show", "chat").stdout
    assert ask(full, "promote", "chat@v2").exit_code == 0
    back = ask(full, "rollback", "chat", "--json")
    assert json.loads(back.stdout) == {"name": "chat", "version": 1, "move": 3}
    assert ask(full, "rollback", "chat").exit_code == 1
    assert resolve_adapter(full, "chat").version == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("promote", "chat"), "does not include a version"),
        (("promote", "chat@v9"), "Available: chat@v1, chat@v2"),
        (("promote", "../x@v1"), "not the name of an adapter"),
        (("rollback", "chat@v1"), "includes a version"),
        (("delete", "chat"), "does not include a version"),
        (("delete", "chat@v9"), "not in the store"),
        (("delete", "chat@v1"), "in use by chat@v2 (its parent)"),
        (("gc", "--grace", "1"), "Invalid value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_impossible_change_exits_with_two_and_changes_nothing(words, message, full):
    before = list(full.list(""))
    result = ask(full, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(full.list("")) == before


def test_a_removal_frees_its_bytes_by_gc_after_a_day(full: DirectoryStore, tmp_path: Path):
    assert ask(full, "delete", "chat@v2").exit_code == 0
    full.put(get_blob_key("f" * 64), b"nobody's")
    os.utime(full.local_path(get_blob_key("f" * 64)), (1, time.time() - 25 * 3600))
    would = json.loads(ask(full, "gc", "--dry-run", "--json").stdout)
    assert would == {
        "removed": [get_blob_key("f" * 64)],
        "leftovers": [],
        "bytes": 8,
        "kept": 2,
    }
    assert "1 blobs and 0 unfinished writes removed, 8 B; 2 blobs remain" in ask(full, "gc").stderr
    assert full.head(get_blob_key("f" * 64)) is None


def test_a_pending_adapter_is_sent(store: DirectoryStore, tmp_path: Path):
    folder, outbox = make_adapter_folder(tmp_path / "exported"), tmp_path / "spool"
    add_to_outbox(outbox, store.url(""), folder, make_draft())
    words = ["adapters", "send-pending", "--outbox", str(outbox)]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"sent": ["chat@v1"], "pending": 0})
    assert "no pending adapters" in CliRunner().invoke(app, words).stderr


def test_an_adapter_that_can_not_be_sent_stays_pending(tmp_path: Path):
    folder, outbox = make_adapter_folder(tmp_path / "exported"), tmp_path / "spool"
    entry = add_to_outbox(outbox, "file:///proc/store", folder, make_draft())
    done = CliRunner().invoke(app, ["adapters", "send-pending", "--outbox", str(outbox)])
    assert done.exit_code == 1
    assert str(entry) in done.stderr
    assert entry.is_dir()


def test_an_adapter_is_signed_once_and_verified_by_the_public_key(full, tmp_path: Path):
    private, public = key_pair(tmp_path, "key")
    assert ask(full, "verify", "chat@v1", "--key", str(public)).exit_code == 1
    assert ask(full, "sign", "chat@v1", "--key", str(private)).exit_code == 0
    assert ask(full, "verify", "chat@v1", "--key", str(public)).exit_code == 0
    again = ask(full, "sign", "chat@v1", "--key", str(private))
    assert again.exit_code == 1 and "already signed" in again.stderr


def test_names_alone_are_listed_without_reading_a_manifest(full: DirectoryStore):
    full.put("adapters/chat/v2/manifest.json", b"nonsense")
    assert ask(full, "list", "--brief").stdout.split() == ["chat@v1", "chat@v2"]
    assert json.loads(ask(full, "list", "--brief", "--json").stdout)["adapters"] == [
        "chat@v1",
        "chat@v2",
    ]


def test_show_prints_the_lineage(full: DirectoryStore):
    text = ask(full, "show", "chat@v2").stdout
    assert "chat@v1, from run r1" in text
    values = json.loads(ask(full, "show", "chat@v2", "--json").stdout)
    assert values["lineage"] == [{"adapter": "chat@v1", "problem": ""}]


def test_verify_compares_the_given_base(full: DirectoryStore, tmp_path: Path):
    result = ask(full, "verify", "chat@v1", "--base", str(tmp_path))
    assert result.exit_code == 1
    assert "not the folder of a model" in result.stderr
