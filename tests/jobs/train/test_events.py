"""The list of events is complete, and each event that has a text is in it."""

from __future__ import annotations

import ast
from pathlib import Path

from jobs.train.monitor.event_text import FORMATTERS
from jobs.train.monitor.events import EVENTS

JOBS = Path(__file__).parents[3] / "jobs"


def list_emitted_events() -> set[str]:
    """Every literal that is emitted as an event or written under the key "event"."""
    names = set()
    for path in JOBS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and "emit_event" in ast.unparse(node.func) and node.args:
                if isinstance(node.args[0], ast.Constant):
                    names.add(str(node.args[0].value))
            elif isinstance(node, ast.Dict):
                names |= {
                    str(value.value)
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant)
                    and key.value == "event"
                    and isinstance(value, ast.Constant)
                }
    return names


def test_every_event_that_is_written_is_listed():
    assert list_emitted_events() == set(EVENTS)


def test_every_event_with_a_text_is_listed():
    assert set(FORMATTERS) <= set(EVENTS)
