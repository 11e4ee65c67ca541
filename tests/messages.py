"""Every sentence that a user may meet, in one file to read: `python -m tests.messages --write`.

A message is a string literal of three words or more outside docstrings, and the docstring of a
command, which is its help. Placeholders stand as the expression that fills them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNAPSHOT = ROOT / "tests" / "messages.txt"
PACKAGES = ("slora", "jobs", "orchestrator", "infra/local", "infra/two_hosts")
MIN_WORDS = 3
NOT_FOR_USERS = re.compile(
    r"^\s*(SELECT|CREATE|DROP|PRAGMA|INSERT|UPDATE|<|\{|%)|\\b|\(\?|^--|://\S+$"
)


def collect_messages() -> str:
    """Return all messages, grouped by module in the order of their lines."""
    blocks = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "versions" in path.parts:
                continue
            lines = list(dict.fromkeys(iter_messages(ast.parse(path.read_text(encoding="utf-8")))))
            if lines:
                blocks.append("\n".join([f"[{path.relative_to(ROOT)}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def iter_messages(tree: ast.Module) -> Iterator[str]:
    """Yield each message on one line."""
    docstrings = {id(node) for node in _iter_docstrings(tree)}
    for text in _iter_literals(tree, docstrings):
        line = " ".join(text.split())
        is_sentence = len(re.findall(r"[A-Za-z]{2,}", line)) >= MIN_WORDS and " " in line
        if is_sentence and not NOT_FOR_USERS.search(line):
            yield line


def _iter_docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield what stands alone as a statement, unless it is the help of a command."""
    for node in ast.walk(tree):
        is_command = isinstance(node, ast.FunctionDef) and any(
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Attribute)
            and decorator.func.attr in ("command", "callback")
            for decorator in node.decorator_list
        )
        for child in ast.iter_child_nodes(node):
            is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if is_docstring and not is_command:
                yield child.value


def _iter_literals(node: ast.AST, skipped: set[int]) -> Iterator[str]:
    if id(node) in skipped:
        return
    if isinstance(node, ast.JoinedStr):
        yield _render_fstring(node)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from _iter_literals(child, skipped)


def _render_fstring(node: ast.JoinedStr) -> str:
    parts = []
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(str(value.value))
        elif isinstance(value, ast.FormattedValue):
            parts.append("{" + ast.unparse(value.value) + "}")
    return "".join(parts)


def main() -> int:
    """Write the snapshot, or say that it is out of date (exit code 1)."""
    messages = collect_messages()
    if "--write" in sys.argv[1:]:
        SNAPSHOT.write_text(messages, encoding="utf-8")
        return 0
    return int(SNAPSHOT.read_text(encoding="utf-8") != messages)


if __name__ == "__main__":
    sys.exit(main())
