"""Build runs and specs for tests of the control plane."""

from __future__ import annotations

from typing import Any

from orchestrator.registry import projects
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import REASONS, Status
from orchestrator.registry.values import ProjectInputs, ProjectLimits, Run


def make_run(status: Status = Status.PLANNED, **changes: Any) -> Run:
    """Make a run with a status, as if it had been read."""
    reason = next(iter(sorted(REASONS[status]))) if status in REASONS else None
    values: dict[str, Any] = {
        "id": "chat-1",
        "project": "default",
        "kind": "finetune",
        "name": "chat",
        "store": "file:///store",
        "spec_sha256": None,
        "workers": 1,
        "priority": 0,
        "status": status,
        "reason": reason,
        "detail": "",
        "attempt": 0 if status is Status.PLANNED else 1,
        "search": None,
        "cluster": "default",
        "tokens": None,
        "stop": None,
        "not_before": None,
        "wait_reason": "",
        "origin": "registry",
        "created_at": 0.0,
        "updated_at": 0.0,
        "revision": 1,
    }
    return Run(**{**values, **changes})


def make_spec(store: str = "file:///store", **changes: Any) -> dict[str, Any]:
    """Make a small spec as plain values."""
    return {
        "name": "chat",
        "model": {"path": "/models/tiny"},
        "data": {"train": "/data/train.jsonl", "eval": "/data/eval.jsonl", "max_length": 64},
        "train": {"steps": 10, "batch_size": 4},
        "store": store,
        **changes,
    }


def open_project(database: Database, name: str) -> None:
    """Create a project that may read anything, unless it exists."""
    with database.write() as session:
        if projects.find(session, name).revision == 0:
            inputs = ProjectInputs(places=None, models=None)
            projects.add(session, name, ProjectLimits(), inputs)
