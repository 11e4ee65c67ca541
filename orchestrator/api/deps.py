"""Dependencies of the routes: the service, and what a caller may access."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from orchestrator.api.auth import Principal
from orchestrator.api.request_ids import get_request_id
from orchestrator.control.resolve import SubmitRequest
from orchestrator.control.supervisor import Service
from orchestrator.registry import projects, runs
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.tenancy.audit_log import Actor
from orchestrator.registry.values import DEFAULT_PROJECT, Run
from orchestrator.schemas.runs import SubmitRunRequest


async def get_service(request: Request) -> Service:
    """Return the service of this app."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
"""Parameter of a route: the service of the app."""


async def get_actor(request: Request) -> Actor:
    """Return the caller as the audit log names them."""
    principal: Principal = request.state.principal
    address = None if request.client is None else request.client.host
    return Actor(principal.token.id, principal.token.label, address, get_request_id())


CurrentActor = Annotated[Actor, Depends(get_actor)]
"""Parameter of a route that changes something: who does it."""


def get_visible_run(session: Session, principal: Principal, run_id: str) -> Run:
    """Return the run. Raise UnknownItem if there is none, or if it is another project's."""
    run = runs.get(session, run_id)
    if not principal.can_access(run.project):
        raise UnknownItem("run", run_id)
    return run


def resolve_project(service: Service, principal: Principal, requested: str | None) -> str:
    """Return the requested project, the token's, or the default one.

    Raise UnknownItem if the caller has no such project. Only POST /v1/projects creates projects:
    a misspelled name would be a project without limits.
    """
    project = requested or principal.project or DEFAULT_PROJECT
    if not principal.can_access(project):
        raise UnknownItem("project", project)
    if project != DEFAULT_PROJECT:
        with service.database.read() as session:
            projects.get(session, project)
    return project


def make_submission(
    service: Service, principal: Principal, body: SubmitRunRequest
) -> SubmitRequest:
    """Return the submission with its project resolved."""
    project = resolve_project(service, principal, body.project)
    return SubmitRequest(**{**body.model_dump(), "project": project})
