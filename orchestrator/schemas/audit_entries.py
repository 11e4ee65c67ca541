"""Entries of the audit log: who changed what, and from where."""

from __future__ import annotations

from typing import Any

from orchestrator.schemas.base import ResponseSchema, with_example

AUDIT_EXAMPLE: dict[str, Any] = {
    "id": 17,
    "at": 1767236400.0,
    "request_id": "5d41402abc4b2a76",
    "token": "5d41402abc4b2a76",
    "label": "ci",
    "address": "192.0.2.7",
    "project": "default",
    "action": "change",
    "object_kind": "project",
    "object": "default",
    "before": {"max_runs": 4},
    "after": {"max_runs": 8},
}


class AuditEntryResponse(ResponseSchema):
    """A change. Without a token and a label, the service made it by itself.

    `before` and `after` have the values that differ, without secrets. A label that starts with
    `local:` is a user of the service's machine, whose command wrote to the database.
    """

    model_config = with_example(**AUDIT_EXAMPLE)

    id: int
    at: float
    request_id: str | None = None
    token: str | None = None
    label: str | None = None
    address: str | None = None
    project: str | None = None
    action: str
    object_kind: str
    object: str
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
