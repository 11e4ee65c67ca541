"""The house itself: which floor may lean on which, what the front door may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from jobs.spec.load import load_spec
from jobs.spec.yaml_text import read_yaml_file

ROOT = Path(__file__).parent.parent
ABOVE = {"slora": {"jobs", "orchestrator"}, "jobs": {"orchestrator"}}
FLOORS = ("slora", "jobs", "orchestrator")
HEAVY = {"torch", "ray", "transformers", "datasets", "numpy"}
DATABASE = {"sqlalchemy", "alembic", "psycopg"}
"""A command that asks no database does not wait for its libraries."""


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("floor", ABOVE)
def test_no_floor_leans_on_one_above(floor: str):
    read = 0
    for path in (ROOT / floor).rglob("*.py"):
        leaning = {name for name in imported(path) if name.split(".")[0] in ABOVE[floor]}
        assert not leaning, f"{path.relative_to(ROOT)} imports {sorted(leaning)} from above"
        read += 1
    assert read > 5


@pytest.mark.parametrize(
    "module", ["orchestrator.cli.main", "orchestrator.cli.adapters_local", "jobs.plan.preflight"]
)
def test_the_control_plane_starts_without_torch(module: str):
    assert loaded_by(module) & (HEAVY | DATABASE) == set()


@pytest.mark.parametrize("module", ["rebuild", "migrate", "schedules", "tokens"])
def test_the_registry_needs_no_torch_and_no_ray(module: str):
    assert loaded_by(f"orchestrator.registry.{module}") & HEAVY == set()


def loaded_by(module: str) -> set[str]:
    """What a fresh process has loaded once it has imported the module."""
    told = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


EXAMPLES = sorted((ROOT / "jobs/examples").glob("*.yaml"))
SEARCHES = [path for path in EXAMPLES if "search" in read_yaml_file(path, ())]
RETRAININGS = [path for path in EXAMPLES if "retrain" in read_yaml_file(path, ())]
FEDERATIONS = [path for path in EXAMPLES if "federation" in read_yaml_file(path, ())]
SINGLE = [path for path in EXAMPLES if path not in (*SEARCHES, *RETRAININGS, *FEDERATIONS)]


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.name)
def test_every_example_is_a_valid_spec(path: Path):
    assert load_spec(path).name == path.stem


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.name)
def test_every_example_of_a_search_is_a_valid_one(path: Path):
    assert load_spec(path).section.space


@pytest.mark.parametrize("path", RETRAININGS, ids=lambda path: path.name)
def test_every_example_of_a_retraining_is_a_valid_one(path: Path):
    assert load_spec(path).section.promote


@pytest.mark.parametrize("path", FEDERATIONS, ids=lambda path: path.name)
def test_every_example_of_a_federation_is_a_valid_one(path: Path):
    assert load_spec(path).sparse_rounds


def test_there_are_examples():
    assert {"chat.yaml", "newsgroups.yaml"} <= {path.name for path in EXAMPLES}
    assert [path.name for path in SEARCHES] == ["search.yaml"]
    assert [path.name for path in RETRAININGS] == ["retrain.yaml"]
    assert [path.name for path in FEDERATIONS] == ["federate.yaml"]


MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_first_what_lives_there(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("floor", ["slora", "jobs", "orchestrator", "infra"])
def test_the_readmes_tree_has_every_folder(floor: str):
    whole = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What is where")[2]
    tree = whole.partition(f"\n    {floor}/")[2].partition("\n\n")[0]
    inside = "\n".join(takewhile(lambda line: line.startswith("      "), tree.splitlines()[1:]))
    there = {one.name for one in (ROOT / floor).iterdir() if one.is_dir()} - {"__pycache__"}
    assert there == set(re.findall(r"\b(\w+)/(?= )", inside))
