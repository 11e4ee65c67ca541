"""One setting trained on the product's own federation, in this process, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.paper_parts.plan import Setting


def train_one(setting: Setting, data: Mapping[str, str], device: str) -> dict[str, Any]:
    """The figures of one training; `unavailable` and a reason where its spec is refused."""
    raise NotImplementedError
