"""What several routes need: the service behind them, and things that the asker can see."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from orchestrator.api.auth import Principal
from orchestrator.api.requests import SubmitRunRequest
from orchestrator.control.resolve import SubmitRequest
from orchestrator.control.supervisor import Service
from orchestrator.registry import projects, runs
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.values import DEFAULT_PROJECT, Run


async def get_service(request: Request) -> Service:
    """The dependency: the service that this app is the door of."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
"""A route's parameter: the service behind the app."""


def get_visible_run(session: Session, principal: Principal, run_id: str) -> Run:
    """The run; Unknown too where it is another project's."""
    run = runs.get(session, run_id)
    if not principal.can_access(run.project):
        raise UnknownItem("run", run_id)
    return run


def resolve_project(service: Service, principal: Principal, requested: str | None) -> str:
    """The project that is meant. Raises Unknown where there is none such for the asker.

    Nothing but POST /v1/projects makes one: a slip of the pen would be a project without limits.
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
    """What the asker asks the intake for."""
    return SubmitRequest(
        kind=body.kind,
        spec=body.spec,
        project=resolve_project(service, principal, body.project),
        cluster=body.cluster,
        priority=body.priority,
    )
