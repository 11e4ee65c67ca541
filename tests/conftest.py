"""The order of the tests: what takes minutes begins first, so that no worker ends alone with it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

SLOWEST_FIRST = ("end_to_end", "ray", "ranks", "storage")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files stay whole, and take the turn of their slowest test."""
    turns: dict[Path, int] = defaultdict(lambda: len(SLOWEST_FIRST))
    for item in items:
        turns[item.path] = min(turns[item.path], _turn(item))
    items.sort(key=lambda item: turns[item.path])


def _turn(item: pytest.Item) -> int:
    marked = (turn for turn, mark in enumerate(SLOWEST_FIRST) if item.get_closest_marker(mark))
    return next(marked, len(SLOWEST_FIRST))
