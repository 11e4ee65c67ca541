"""Looks of the real child, and of one that misbehaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.control.looking.look_protocol import LookLimits, LookRequest, LookResult
from orchestrator.control.looking.look_runner import LookRunner
from tests.orchestrator.control.misbehaving_child import MODULE

WAIT_S = 300.0
"""For what takes a second on a machine without other work."""
PATIENT = LookLimits(wall_s=WAIT_S)


class Looker:
    """Looks of the real child, and of one that misbehaves."""

    def __init__(self) -> None:
        self.runners = list[LookRunner]()

    def make(self, **changes: Any) -> LookRunner:
        self.runners.append(LookRunner(**{"limits": PATIENT, **changes}))
        return self.runners[-1]

    def misbehave(self, action: str, **limits: Any) -> LookResult:
        runner = self.make(module=MODULE, limits=LookLimits(**{"wall_s": WAIT_S, **limits}))
        request = LookRequest(question="fingerprint_data", location=f"/{action}")
        return runner.submit("default", request).result(WAIT_S)


def make_fifo(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o644)
    return path
