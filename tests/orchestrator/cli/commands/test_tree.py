"""The command tree: correct help, completion, and lazy imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.command_table import COMMANDS
from orchestrator.cli.main import app
from orchestrator.cli.tree import load_command

SLORA = str(Path(sys.executable).parent / "slora")
SLOW = {"torch", "ray", "sqlalchemy", "boto3", "fastapi", "uvicorn", "pydantic", "httpx", "yaml"}
"""Modules that no help needs: importing them takes three times as long as the help itself."""


def run_slora(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in its own process."""
    return subprocess.run(
        [SLORA, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


def complete(line: str) -> list[str]:
    """Return bash's completions of the line."""
    words = line.split(" ")
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return run_slora(_SLORA_COMPLETE="complete_bash", **environment).stdout.split()


def list_loaded_modules(*words: str) -> set[str]:
    """Return the modules that a new process has imported after the command."""
    code = (
        "import sys\nfrom orchestrator.cli.main import app\n"
        f"try:\n    app({list(words)!r})\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_in_the_table_is_the_first_line_of_the_commands_help(name: str):
    assert (load_command(name).help or "").splitlines()[0] == COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_own_help_within_eighty_columns(name: str):
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert f"slora {name} " in result.stdout or f"{name} [OPTIONS]" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_the_help_lists_every_command():
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    assert all(f"│ {name} " in text for name in COMMANDS)


def test_a_mistyped_command_names_the_nearest_one():
    result = CliRunner().invoke(app, ["adaptrs", "list"])
    assert result.exit_code == 2 and "adapters" in result.stderr


def test_help_imports_nothing_slow():
    assert list_loaded_modules("--help") & SLOW == set()


def test_commands_complete_without_being_loaded():
    assert {"plan"} == set(complete("slora pla"))
    assert set(COMMANDS) <= set(complete("slora "))


def test_subcommands_and_options_are_completed():
    assert "pull" in complete("slora adapters pu")
    assert "--set" in complete("slora plan --s")
