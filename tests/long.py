"""What `make test` leaves to `make test-long`: most cases of a campaign, and some whole tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

T = TypeVar("T")


def cases(values: Iterable[T], short: Collection[T]) -> list[T | ParameterSet]:
    """Every value as a parameter of a test; those that are not in `short` are marked long."""
    return [
        value if value in short else pytest.param(value, marks=pytest.mark.long) for value in values
    ]


def long_asked(request: pytest.FixtureRequest) -> bool:
    """Whether a long case of the module is to run: its fixtures make what that needs, too."""
    return any(
        item.get_closest_marker("long")
        for item in request.session.items
        if getattr(item, "module", None) is request.module
    )
