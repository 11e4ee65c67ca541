"""Commands in this process that use the real service over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.main import app
from orchestrator.registry.database import Database
from tests.orchestrator.api.builders import ApiHarness, open_harness, serve_app
from tests.tiny import chat_rows, hollow_model


@dataclass
class CommandHarness:
    """The service, its address, and the command line that uses it."""

    api: ApiHarness
    url: str
    folder: Path
    """A folder with a model without weights, and with rows."""

    def environment(self, scope: str = "admin", project: str | None = None) -> dict[str, str]:
        """Return the environment of a process with such a token."""
        token = self.api.secrets[scope, project]
        # The cache is shared: what the plan learns about a model takes a child process seconds.
        paths = {"HOME": str(self.folder), "SLORA_CACHE": str(Path.home() / ".cache" / "slora")}
        return {"SLORA_SERVICE": self.url, "SLORA_TOKEN": token, "COLUMNS": "80", **paths}

    def ask(self, *words: str, scope: str = "admin", project: str | None = None) -> Result:
        """Run one command with such a token."""
        return CliRunner().invoke(app, list(words), env=self.environment(scope, project))


@pytest.fixture
def cli(migrated_file: Path, tmp_path: Path) -> Iterator[CommandHarness]:
    file = tmp_path / "registry.db"
    shutil.copy(migrated_file, file)
    database = Database(f"sqlite:///{file}")
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    store = f"file://{tmp_path / 'store'}"
    with open_harness(database, store) as api, serve_app(api.app) as url:
        yield CommandHarness(api, url, tmp_path)
    database.close()
