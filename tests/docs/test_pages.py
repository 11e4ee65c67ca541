"""The pages say what is true: links, commands and files exist, and the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.command_table import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {f"docs/reference/{name}.md" for name in ("spec", "cli", "http", "events", "zoo")}
MAX_README_LINES = 120
COMMAND = re.compile(r"(?:^|[;$`\s])slora ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?")


def read_code(text: str) -> str:
    """Return what stands in code: fenced or indented blocks, and between backticks."""
    fenced = re.findall(r"```.*?\n(.*?)```", text, re.S)
    indented = re.findall(r"^    (.*)$", text, re.M)
    inline = re.findall(r"`([^`\n]+)`", text)
    return "\n".join([*fenced, *indented, *inline])


def test_the_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MAX_README_LINES


def test_no_page_calls_a_command_by_the_path_of_an_environment():
    assert [page.name for page in PAGES if ".venv/bin/" in page.read_text("utf-8")] == []


def test_every_link_to_a_file_resolves():
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            target = (page.parent / link).resolve()
            is_generated = str(target).removeprefix(f"{ROOT}/") in GENERATED
            if "://" not in link and not target.exists() and not is_generated:
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_every_path_of_the_code_that_a_page_names_exists():
    pattern = re.compile(r"`((?:slora|jobs|orchestrator|infra|tests)/[\w./-]+)`")
    missing = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in PAGES
        for path in pattern.findall(page.read_text("utf-8"))
        if not (ROOT / path).exists()
    ]
    assert missing == []


def iter_commands() -> Iterator[tuple[str, str, str]]:
    """Every `slora COMMAND [WORD]` that stands in code on a page."""
    for page in PAGES:
        code = read_code(page.read_text("utf-8"))
        for command, word in COMMAND.findall(code):
            yield str(page.relative_to(ROOT)), command, word


def test_every_command_that_a_page_names_exists():
    unknown = set()
    for page, command, word in iter_commands():
        entry = COMMANDS.get(command)
        if entry is None:
            unknown.add(f"{page}: slora {command}")
            continue
        module, _, name = entry.target.partition(":")
        if not name:
            group: Any = typer.main.get_command(import_module(module).app)
            if word and word not in group.commands and not group.invoke_without_command:
                unknown.add(f"{page}: slora {command} {word}")
    assert unknown == set()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    pages = {path.name for path in (tmp_path / "reference").iterdir()}
    expected = ("spec", "cli", "http", "client", "events", "zoo")
    assert {f"{name}.html" for name in expected} <= pages
