"""A canary key must not appear in any message or byte that the store writes."""

from __future__ import annotations

import logging
import pickle
import secrets
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.errors import JobsError
from jobs.store.adapters.operations import commit, pull, resolve_adapter
from jobs.store.adapters.outbox import add_to_outbox, list_outbox, send_entry
from jobs.store.runs.run_store import RunStore
from jobs.store.s3.s3_store import S3Store
from orchestrator.cli.main import app
from tests.jobs.store.builders import catch, make_adapter_folder, make_draft
from tests.storage.weed import BUCKET, Weed

CANARY = "canary-9d1f4c7be2"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A server whose secret is the canary."""
    server = Weed(tmp_path_factory.mktemp("guarded"), secret=CANARY)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def store(guarded: Weed, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    for name, value in guarded.environment.items():
        monkeypatch.setenv(name, value)
    return S3Store(BUCKET, f"test-{secrets.token_hex(6)}")


def format_error(error: BaseException) -> str:
    """Return all text of an error and its causes that a log, pickle or traceback could show."""
    text = "".join(traceback.format_exception(error))
    return text + repr(error) + repr(pickle.dumps(str(error)))


def test_no_secret_is_in_any_written_object(store: S3Store, tmp_path: Path, caplog):
    caplog.set_level(logging.DEBUG)
    manifest = commit(store, make_adapter_folder(tmp_path / "exported"), make_draft())
    pull(store, manifest, tmp_path / "pulled")
    runs = RunStore(store, "r1")
    runs.events.append({"event": "started"})
    runs.write_text("spec.yaml", "name: chat")
    add_to_outbox(tmp_path / "outbox", store.url(""), tmp_path / "exported", make_draft(run="r2"))
    for key in store.list(""):
        assert CANARY.encode() not in store.get(key) + key.encode()
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert CANARY.encode() not in path.read_bytes(), path
    assert CANARY.encode() not in pickle.dumps(store)
    ours = [record for record in caplog.records if record.name.startswith(("jobs", "slora"))]
    assert CANARY not in "".join(record.getMessage() for record in ours)


WRONG = {
    "a wrong secret": {"AWS_SECRET_ACCESS_KEY": f"{CANARY}-wrong"},
    "a wrong key": {"AWS_ACCESS_KEY_ID": f"{CANARY}-id", "AWS_SECRET_ACCESS_KEY": CANARY},
    "an expired session": {"AWS_SESSION_TOKEN": f"{CANARY}-token"},
    "no server": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"},
    "no such profile": {"AWS_PROFILE": "nobody", "AWS_ACCESS_KEY_ID": ""},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_no_secret_is_in_any_error(change, store: S3Store, tmp_path: Path, monkeypatch):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    other = S3Store(store.bucket, store.prefix + "-other")
    folder = make_adapter_folder(tmp_path / "exported")
    entry_folder = add_to_outbox(tmp_path / "outbox", other.url(""), folder, make_draft())
    acts = (
        lambda: other.get("a"),
        lambda: other.put("a", b"x", create_only=True),
        lambda: list(other.list("")),
        lambda: commit(other, folder, make_draft()),
        lambda: resolve_adapter(other, "chat"),
        lambda: send_entry(list_outbox(entry_folder.parent)[0][0], other),
    )
    errors = [error for act in acts if (error := catch(JobsError, act)) is not None]
    assert not [error for error in errors if CANARY in format_error(error)]
    # Not every server rejects an unknown session token.
    assert len(errors) >= 5 or "AWS_SESSION_TOKEN" in change


@pytest.mark.parametrize("command", ["list", "show chat", "verify chat", "promote chat@v1", "gc"])
def test_no_secret_is_in_the_output_of_a_command(command: str, store: S3Store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{CANARY}-wrong")
    result = CliRunner().invoke(app, ["adapters", *command.split(), "--store", store.url("")])
    assert result.exit_code == 3
    assert CANARY not in result.output and "Traceback" not in result.output
    assert "access denied" in result.output
