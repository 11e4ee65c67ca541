"""`slora registry`: exit codes, messages and JSON."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from jobs.store.local import DirectoryStore
from orchestrator.cli import console
from orchestrator.cli.console import LazyProgressBar
from orchestrator.cli.main import app
from orchestrator.registry.database import Database
from orchestrator.registry.migrate import upgrade
from orchestrator.registry.tenancy.audit_log import list_entries, make_local_actor
from orchestrator.registry.tokens import find_bearer, list_tokens
from tests.orchestrator.registry.stores import DONE, fill_store

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "store")
    fill_store(store, tmp_path / "exported")
    return store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["registry", *arguments])


def test_a_rebuild_creates_the_tables_and_reports_its_counts(store: DirectoryStore, url: str):
    arguments = ("rebuild", "--store", store.url(""), "--database", url)
    first = invoke(*arguments)
    assert first.exit_code == 0, first.output
    assert "runs      7 in the store, 7 new or changed" in first.stdout
    assert "adapters  2 in the store, 2 new or changed" in first.stdout
    again = json.loads(invoke(*arguments, "--json").stdout)
    assert again["runs"] == {"total": 7, "changed": 0}
    assert (again["removed"], again["unreadable"], again["events"]) == ([], [], 0)


def test_an_unreadable_object_is_reported_with_exit_code_1(store: DirectoryStore, url: str):
    store.put("adapters/chat/v1/manifest.json", b"\x1b[2J")
    arguments = ("rebuild", "--store", store.url(""), "--database", url)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "unreadable: adapters/chat/v1/manifest.json" in result.stderr
    report = json.loads(invoke(*arguments, "--json").stdout)
    assert [fault["key"] for fault in report["unreadable"]] == ["adapters/chat/v1/manifest.json"]


def test_new_rows_belong_to_the_given_project(store: DirectoryStore, url: str):
    assert invoke(
        "rebuild", "--store", store.url(""), "--database", url, "--project", "lab"
    ).exit_code == 0  # fmt: skip
    counts = json.loads(invoke("status", "--database", url, "--json").stdout)["rows"]
    assert (counts["projects"], counts["runs"], counts["runs done"]) == (1, 7, 3)
    bad = invoke("rebuild", "--store", store.url(""), "--database", url, "--project", "a b")
    assert bad.exit_code == 2 and "project: 'a b' is not a valid name" in bad.stderr


def test_the_schema_is_upgraded_once(url: str):
    before = invoke("status", "--database", url)
    assert before.exit_code == 2
    assert "Run `slora registry upgrade`" in before.stderr
    assert "now has schema 0004" in invoke("upgrade", "--database", url).stdout
    assert "already has schema 0004" in invoke("upgrade", "--database", url).stdout
    after = invoke("status", "--database", url, "--json")
    assert after.exit_code == 0
    assert json.loads(after.stdout)["current"] is True


def test_commands_that_write_to_the_database_are_in_the_audit_log(
    store: DirectoryStore, url: str, tmp_path: Path
):
    invoke("upgrade", "--database", url)
    invoke("upgrade", "--database", url)
    invoke("rebuild", "--store", store.url(""), "--database", url, "--project", "lab")
    invoke("token", str(tmp_path / "token"), "--database", url)
    with closing(Database(url)) as database, database.read() as session:
        entries = list_entries(session)
    assert [(entry.action, entry.object_kind, entry.project) for entry in entries] == [
        ("create", "token", None),
        ("rebuild", "registry", "lab"),
        ("upgrade", "registry", None),
    ]
    for entry in entries:
        assert entry.label is not None and entry.label.startswith("local:")
        assert entry.token is None and entry.address is None
    assert entries[2].after == {"schema": "0004"}
    assert (tmp_path / "token").read_text().strip() not in str(entries)


def test_a_rebuild_into_an_older_schema_needs_an_upgrade(store: DirectoryStore, url: str):
    upgrade(url, "0001")
    result = invoke("rebuild", "--store", store.url(""), "--database", url)
    assert result.exit_code == 2
    assert "slora registry upgrade" in result.stderr


@pytest.mark.parametrize("command", ["upgrade", "status", "rebuild"])
def test_a_wrong_database_is_one_message_and_exit_code_two(command: str):
    result = invoke(command, "--database", "mysql://u:secret@host/db")
    assert result.exit_code == 2
    assert "Use sqlite:///FILE or postgresql://" in result.stderr
    assert "secret" not in result.output


def test_the_environment_can_name_the_database(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLORA_DATABASE", url)
    assert invoke("upgrade").exit_code == 0
    assert invoke("status").exit_code == 0


def test_a_missing_extra_is_named():
    program = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.modules['alembic'] = None\n"
        "from orchestrator.cli.main import app\n"
        "app(['registry', 'status'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    assert "Install the extra: pip install '.[service]'" in done.stderr.replace("\n", " ")


def test_the_progress_bar_appears_after_two_seconds_and_counts_objects(monkeypatch):
    ticks = iter([0.0, 1.9, 2.1])
    shown = Console(file=StringIO(), force_terminal=True, color_system=None, width=80)
    monkeypatch.setattr(console, "err_console", shown)
    bar = LazyProgressBar("Reading", 40, counts="objects", clock=lambda: next(ticks))
    with closing(bar) as work:
        work.advance(1)
        assert work._bar is None
        work.advance(11)
        assert work._bar is not None
        work._bar.refresh()
    assert "12/40 objects" in shown.file.getvalue()


def test_the_given_store_is_read(store: DirectoryStore, url: str):
    invoke("rebuild", "--store", store.url(""), "--database", url)
    assert DONE in (Path(url.removeprefix("sqlite:///")).read_bytes().decode("latin-1"))


def test_a_new_admin_token_is_private_and_valid(url: str, tmp_path: Path):
    upgrade(url)
    file = tmp_path / "token"
    result = invoke("token", str(file), "--database", url, "--days", "1")
    assert result.exit_code == 0, result.output
    secret = file.read_text().strip()
    assert secret not in result.output and stat.S_IMODE(file.stat().st_mode) == 0o600
    registry = Database(url)
    with registry.read() as session:
        token = find_bearer(session, secret)
    registry.close()
    assert token is not None and (token.scope, token.project) == ("admin", None)
    assert token.expires_at is not None


def test_a_token_that_cannot_be_written_is_not_valid(url: str, tmp_path: Path):
    upgrade(url)
    (tmp_path / "existing").write_text("mine")
    (tmp_path / "file").write_text("")
    for name in ("existing", "file/below"):
        assert invoke("token", str(tmp_path / name), "--database", url).exit_code == 2
    registry = Database(url)
    with registry.read() as session:
        assert list_tokens(session) == []
    registry.close()
    assert (tmp_path / "existing").read_text() == "mine"


def test_the_quarantine_is_managed_without_the_service(url: str):
    upgrade(url)
    place = ("--database", url)
    assert "Nothing is in quarantine." in invoke("quarantine", "list", *place).stdout
    added = invoke("quarantine", "add", "run", "chat-1", "--reason", "kills \x1b[2J", *place)
    assert added.exit_code == 0 and "The run chat-1 is in quarantine." in added.stdout
    assert invoke("quarantine", "add", "schedule", "lab/nightly", *place).exit_code == 0
    listed = json.loads(invoke("quarantine", "list", "--json", *place).stdout)["items"]
    assert {(item["kind"], item["item"], item["project"]) for item in listed} == {
        ("run", "chat-1", None), ("schedule", "lab/nightly", "lab")
    }  # fmt: skip
    table = invoke("quarantine", "list", *place).stdout
    assert "lab/nightly" in table and "added by an operator" in table and "\x1b" not in table
    released = invoke("quarantine", "release", "run", "chat-1", "--json", *place)
    assert json.loads(released.stdout)["item"] == "chat-1"
    assert invoke("quarantine", "release", "run", "chat-1", *place).exit_code == 2
    assert len(json.loads(invoke("quarantine", "list", "--json", *place).stdout)["items"]) == 1
    with closing(Database(url)) as database, database.read() as session:
        entries = list_entries(session)
    assert [(entry.action, entry.object) for entry in entries] == [
        ("release", "chat-1"), ("quarantine", "lab/nightly"), ("quarantine", "chat-1")
    ]  # fmt: skip
    assert {entry.label for entry in entries} == {make_local_actor().label}


@pytest.mark.parametrize(
    ("kind", "item"), [("run", "chat-1"), ("cat", "x"), ("schedule", "nightly"), ("job", "x" * 200)]
)
def test_an_item_that_cannot_be_quarantined_is_refused(url: str, kind: str, item: str):
    upgrade(url)
    invoke("quarantine", "add", "run", "chat-1", "--database", url)
    result = invoke("quarantine", "add", kind, item, "--database", url)
    assert result.exit_code == 2
    assert ("KIND: 'cat'" if kind == "cat" else "ITEM: ") in result.stderr


def test_a_backup_is_restored_into_an_empty_database_only(
    store: DirectoryStore, url: str, tmp_path: Path
):
    invoke("rebuild", "--store", store.url(""), "--database", url)
    file = tmp_path / "registry.backup"
    written = invoke("backup", str(file), "--database", url)
    assert written.exit_code == 0 and f"Wrote {file}." in written.stdout.replace("\n", " ")
    refused = invoke("restore", str(file), "--database", url)
    assert refused.exit_code == 2 and "--replace" in refused.stderr
    other = f"sqlite:///{tmp_path / 'other.db'}"
    result = invoke("restore", str(file), "--database", other)
    assert result.exit_code == 0 and "slora registry rebuild" in result.stderr, result.output
    counts = json.loads(invoke("status", "--database", other, "--json").stdout)["rows"]
    assert counts["runs"] == 7
    assert invoke("restore", str(file), "--database", url, "--replace").exit_code == 0


def test_a_rebuilt_registry_takes_over_the_requested_id(store: DirectoryStore, url: str):
    arguments = ("rebuild", "--store", store.url(""), "--database", url)
    own = json.loads(invoke(*arguments, "--json").stdout)["instance"]
    lost = "0123456789abcdef" * 2
    taken = invoke(*arguments, "--instance", lost)
    assert taken.exit_code == 0 and f"This registry is now {lost}" in taken.stdout
    kept = json.loads(invoke(*arguments, "--instance", "own", "--json").stdout)
    assert kept["instance"] == lost != own
    wrong = invoke(*arguments, "--instance", "production")
    assert wrong.exit_code == 2 and "32 hexadecimal digits" in wrong.stderr.replace("\n", " ")
