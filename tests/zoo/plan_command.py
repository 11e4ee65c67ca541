"""`slora plan SPEC --json` in this process: its exit code, its output and its message."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tiny import write_spec

REFUSED_INPUT = 2
"""The exit code for an input that is wrong."""


@dataclass(frozen=True)
class PlanAnswer:
    """What the command answered."""

    exit_code: int
    plan: dict[str, Any]
    """Empty if there is none."""
    message: str
    """What it wrote to stderr: refusals, a fault a line."""


def ask_plan(spec: Mapping[str, Any], path: Path) -> PlanAnswer:
    """Write the spec to `path`, and return what the command answers."""
    from orchestrator.cli.main import app

    write_spec(path, spec)
    output, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            app(["plan", str(path), "--json"])
        exit_code = 0
    except SystemExit as end:
        exit_code = int(end.code or 0)
    plan = json.loads(output.getvalue()) if not exit_code else {}
    return PlanAnswer(exit_code, plan, errors.getvalue().strip())
