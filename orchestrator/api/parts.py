"""What several routes need: the service behind them, and things that the asker can see."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from orchestrator.api.access import Who
from orchestrator.api.given import AskedRun
from orchestrator.registry import projects, runs
from orchestrator.registry.errors import Unknown
from orchestrator.registry.values import DEFAULT_PROJECT, Run
from orchestrator.service.intake import Submission
from orchestrator.service.loop import Service


async def service_of(request: Request) -> Service:
    """The dependency: the service that this app is the door of."""
    found: Service = request.app.state.service
    return found


Behind = Annotated[Service, Depends(service_of)]
"""A route's parameter: the service behind the app."""


def visible_run(session: Session, who: Who, run_id: str) -> Run:
    """The run; Unknown too where it is another project's."""
    run = runs.get(session, run_id)
    if not who.sees(run.project):
        raise Unknown("run", run_id)
    return run


def own_project(service: Service, who: Who, named: str | None) -> str:
    """The project that is meant. Raises Unknown where there is none such for the asker.

    Nothing but POST /v1/projects makes one: a slip of the pen would be a project without limits.
    """
    project = named or who.project or DEFAULT_PROJECT
    if not who.sees(project):
        raise Unknown("project", project)
    if project != DEFAULT_PROJECT:
        with service.database.read() as session:
            projects.project(session, project)
    return project


def submission(service: Service, who: Who, asked: AskedRun) -> Submission:
    """What the asker asks the intake for."""
    return Submission(
        kind=asked.kind,
        spec=asked.spec,
        project=own_project(service, who, asked.project),
        cluster=asked.cluster,
        priority=asked.priority,
    )
