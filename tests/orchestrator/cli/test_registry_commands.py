"""`slora registry`: exit codes, words, JSON, and that it starts as fast as the rest."""

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


def ask(*words: str) -> Result:
    return CliRunner().invoke(app, ["registry", *words])


def test_a_rebuild_makes_the_tables_and_tells_what_it_found(store: DirectoryStore, url: str):
    words = ("rebuild", "--store", store.url(""), "--database", url)
    first = ask(*words)
    assert first.exit_code == 0, first.output
    assert "runs      7 in the store, 7 new or changed" in first.stdout
    assert "adapters  2 in the store, 2 new or changed" in first.stdout
    again = json.loads(ask(*words, "--json").stdout)
    assert again["runs"] == {"found": 7, "changed": 0}
    assert (again["forgotten"], again["unreadable"], again["events"]) == ([], [], 0)


def test_what_can_not_be_read_is_told_and_ends_with_one(store: DirectoryStore, url: str):
    store.put("adapters/chat/v1/manifest.json", b"\x1b[2J")
    words = ("rebuild", "--store", store.url(""), "--database", url)
    told = ask(*words)
    assert told.exit_code == 1
    assert "unreadable: adapters/chat/v1/manifest.json" in told.stderr
    found = json.loads(ask(*words, "--json").stdout)
    assert [one["key"] for one in found["unreadable"]] == ["adapters/chat/v1/manifest.json"]


def test_what_is_new_goes_to_the_project_that_is_named(store: DirectoryStore, url: str):
    assert ask(
        "rebuild", "--store", store.url(""), "--database", url, "--project", "lab"
    ).exit_code == 0  # fmt: skip
    counts = json.loads(ask("status", "--database", url, "--json").stdout)["rows"]
    assert (counts["projects"], counts["runs"], counts["runs done"]) == (1, 7, 3)
    bad = ask("rebuild", "--store", store.url(""), "--database", url, "--project", "a b")
    assert bad.exit_code == 2 and "project: 'a b' is no name" in bad.stderr


def test_the_tables_are_brought_up_to_date_once(url: str):
    before = ask("status", "--database", url)
    assert before.exit_code == 2
    assert "run `slora registry upgrade`" in before.stderr
    assert "is at 0003 now" in ask("upgrade", "--database", url).stdout
    assert "is at 0003 already" in ask("upgrade", "--database", url).stdout
    after = ask("status", "--database", url, "--json")
    assert after.exit_code == 0
    assert json.loads(after.stdout)["current"] is True


def test_a_rebuild_into_older_tables_asks_for_an_upgrade(store: DirectoryStore, url: str):
    upgrade(url, "0001")
    told = ask("rebuild", "--store", store.url(""), "--database", url)
    assert told.exit_code == 2
    assert "slora registry upgrade" in told.stderr


@pytest.mark.parametrize("command", ["upgrade", "status", "rebuild"])
def test_a_wrong_database_is_one_message_and_exit_code_two(command: str):
    told = ask(command, "--database", "mysql://u:secret@host/db")
    assert told.exit_code == 2
    assert "Use sqlite:///FILE or postgresql://" in told.stderr
    assert "secret" not in told.output


def test_the_database_may_be_named_by_the_environment(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLORA_DATABASE", url)
    assert ask("upgrade").exit_code == 0
    assert ask("status").exit_code == 0


def test_without_the_extra_it_says_which_one_to_install():
    told = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.modules['alembic'] = None\n"
        "from orchestrator.cli.main import app\n"
        "app(['registry', 'status'])"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    assert "Install the extra: pip install '.[service]'" in done.stderr.replace("\n", " ")


def test_the_bar_of_a_rebuild_comes_after_two_seconds_and_counts_papers(monkeypatch):
    ticks = iter([0.0, 1.9, 2.1])
    shown = Console(file=StringIO(), force_terminal=True, color_system=None, width=80)
    monkeypatch.setattr(console, "err_console", shown)
    bar = LazyProgressBar("Reading", 40, counts="papers", clock=lambda: next(ticks))
    with closing(bar) as work:
        work.advance(1)
        assert work._bar is None
        work.advance(11)
        assert work._bar is not None
        work._bar.refresh()
    assert "12/40 papers" in shown.file.getvalue()


def test_the_store_that_is_meant_is_the_one_that_is_read(store: DirectoryStore, url: str):
    ask("rebuild", "--store", store.url(""), "--database", url)
    assert DONE in (Path(url.removeprefix("sqlite:///")).read_bytes().decode("latin-1"))


def test_a_new_admins_token_is_for_its_owner_alone_and_opens_the_service(url: str, tmp_path: Path):
    upgrade(url)
    file = tmp_path / "token"
    said = ask("token", str(file), "--database", url, "--days", "1")
    assert said.exit_code == 0, said.output
    words = file.read_text().strip()
    assert words not in said.output and stat.S_IMODE(file.stat().st_mode) == 0o600
    registry = Database(url)
    with registry.read() as session:
        found = find_bearer(session, words)
    registry.close()
    assert found is not None and (found.scope, found.project) == ("admin", None)
    assert found.expires_at is not None


def test_a_token_that_can_not_be_written_is_none(url: str, tmp_path: Path):
    upgrade(url)
    (tmp_path / "there").write_text("mine")
    (tmp_path / "file").write_text("")
    for place in ("there", "file/below"):
        assert ask("token", str(tmp_path / place), "--database", url).exit_code == 2
    registry = Database(url)
    with registry.read() as session:
        assert list_tokens(session) == []
    registry.close()
    assert (tmp_path / "there").read_text() == "mine"
