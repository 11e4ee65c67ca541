"""The shape of the code: imports, cycles, lengths of files and functions, names of classes."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("slora", "jobs", "orchestrator")
FORBIDDEN_ABOVE = {"slora": {"jobs", "orchestrator"}, "jobs": {"orchestrator"}}
HEAVY = {"torch", "ray", "transformers", "datasets", "numpy"}
DATABASE = {"sqlalchemy", "alembic", "psycopg"}
"""Libraries that a command which asks no database does not wait for."""
SERVICE = (
    "api.app",
    "api.server",
    "control.supervisor",
    "registry.rebuild.rebuild",
    "client.client",
)
MAX_FILE_LINES = 400
MAX_MEDIAN_LINES, MAX_P90_LINES = 8, 20


def parse_module(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def list_modules(*packages: str) -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    paths = (path for package in packages for path in sorted((ROOT / package).rglob("*.py")))
    return {name_module(path): path for path in paths}


def name_module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def iter_imports(tree: ast.AST, *, top_level: bool = False) -> Iterator[tuple[str, str | None]]:
    """Each imported module and name; inside functions too unless only the top level is wanted."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif not (top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from iter_imports(node, top_level=top_level)


def test_no_package_imports_one_above_it():
    for name, path in list_modules(*FORBIDDEN_ABOVE).items():
        above = FORBIDDEN_ABOVE[name.split(".")[0]]
        upward = {
            module
            for module, _ in iter_imports(parse_module(path))
            if module.split(".")[0] in above
        }
        assert not upward, f"{name} imports {sorted(upward)}"


def test_no_import_cycle():
    modules = list_modules(*PACKAGES)
    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in modules.items():
        for module, member in iter_imports(parse_module(path), top_level=True):
            target = f"{module}.{member}" if f"{module}.{member}" in modules else module
            if target in modules and target != name:
                graph[name].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"import cycle: {' -> '.join(error.args[1])}") from error


def test_every_module_has_a_docstring_and_fits_in_400_lines():
    for name, path in list_modules(*PACKAGES, "infra").items():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= MAX_FILE_LINES, f"{name} has {text.count(chr(10))} lines"
        docstring = ast.get_docstring(ast.parse(text))
        assert docstring and len(docstring) > 10, f"{name} does not say what it holds"


def test_functions_are_short():
    lengths = [
        node.end_lineno - node.lineno + 1
        for path in list_modules(*PACKAGES, "infra").values()
        for node in ast.walk(parse_module(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    assert statistics.median(lengths) <= MAX_MEDIAN_LINES
    assert statistics.quantiles(lengths, n=10)[-1] <= MAX_P90_LINES


def test_no_two_classes_share_a_name():
    homes: dict[str, list[str]] = defaultdict(list)
    for name, path in list_modules(*PACKAGES, "infra").items():
        for node in ast.walk(parse_module(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    assert {cls: where for cls, where in homes.items() if len(where) > 1} == {}


@pytest.mark.parametrize("module", ["orchestrator.cli.main", "jobs.plan.preflight"])
def test_a_command_starts_without_torch_ray_or_a_database(module: str):
    assert list_loaded_by(module) & (HEAVY | DATABASE) == set()


@pytest.mark.parametrize("module", SERVICE)
def test_the_control_plane_loads_neither_torch_nor_ray(module: str):
    assert list_loaded_by(f"orchestrator.{module}") & HEAVY == set()


def list_loaded_by(module: str) -> set[str]:
    """Every module that a fresh process has loaded once it has imported this one."""
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(result.stdout.split())
