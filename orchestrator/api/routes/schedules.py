"""Routes of schedules: create, list, change, delete, and list their firings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from jobs.store.adapters.manifest import Name
from orchestrator.api import cursor
from orchestrator.api.audit_values import record_schedule
from orchestrator.api.auth import AuthenticatedRoute, CurrentPrincipal, Principal, requires_scope
from orchestrator.api.cursor import Cursor, Limit, PageKey, make_page
from orchestrator.api.deps import CurrentActor, ServiceDep, resolve_project
from orchestrator.api.parameters import NamePath, NameQuery
from orchestrator.api.problems import describe_problems
from orchestrator.control.cron import check_cron
from orchestrator.control.scheduler import find_next_firing, make_submission
from orchestrator.registry import projects, schedules
from orchestrator.registry.errors import LostUpdate, UnknownItem
from orchestrator.registry.schedules import NewSchedule, Schedule
from orchestrator.registry.tenancy import quotas
from orchestrator.schemas.base import Page
from orchestrator.schemas.schedules import (
    CreateScheduleRequest,
    FiringResponse,
    ScheduleResponse,
    UpdateScheduleRequest,
)

TIMING_FIELDS = {"cron", "time_zone", "jitter_s"}
"""Fields that the time of the next firing depends on."""

router = APIRouter(prefix="/v1/schedules", tags=["schedules"], route_class=AuthenticatedRoute)


class SchedulePageKey(PageKey):
    """Key of a schedule in the list, which is sorted by project and name."""

    project: Name
    name: Name


class FiringPageKey(PageKey):
    """Key of a firing in the list, which is sorted by due time, the newest first."""

    due_at: float


@router.get(
    "",
    responses=describe_problems(),
    openapi_extra=requires_scope("viewer"),
)
def list_schedules(
    principal: CurrentPrincipal,
    service: ServiceDep,
    project: NameQuery = None,
    limit: Limit = cursor.PAGE_SIZE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Page[ScheduleResponse]:
    """Return schedules, sorted by project and name."""
    page_key = cursor.decode_cursor(SchedulePageKey, after)
    if project is not None and not principal.can_access(project):
        return Page(items=[], next=None)
    after_key = "" if page_key is None else f"{page_key.project}/{page_key.name}"
    with service.database.read() as session:
        records = schedules.list_page(
            session, project=project or principal.project, after=after_key, limit=limit + 1
        )
    return make_page(ScheduleResponse, SchedulePageKey, records, limit)


@router.post(
    "",
    status_code=201,
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def create_schedule(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    body: CreateScheduleRequest,
) -> ScheduleResponse:
    """Create a schedule, after validating what it would submit."""
    project = resolve_project(service, principal, body.project)
    new_schedule = NewSchedule(**{**body.model_dump(), "project": project})
    check_cron(new_schedule.cron, new_schedule.time_zone)
    service.intake.resolve(make_submission(new_schedule))
    next_at = find_next_firing(new_schedule, service.clock.now())
    with service.database.write() as session:
        schedule = schedules.add(session, new_schedule, next_at=next_at, by=actor)
        record_schedule(session, actor, None, schedule)
    return ScheduleResponse.model_validate(schedule)


@router.get(
    "/{project}/{name}",
    responses=describe_problems(404),
    openapi_extra=requires_scope("viewer"),
)
def get_schedule(
    principal: CurrentPrincipal,
    service: ServiceDep,
    project: NamePath,
    name: NamePath,
) -> ScheduleResponse:
    """Return one schedule."""
    with service.database.read() as session:
        return ScheduleResponse.model_validate(
            _get_visible_schedule(session, principal, project, name)
        )


@router.patch(
    "/{project}/{name}",
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def update_schedule(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    project: NamePath,
    name: NamePath,
    body: UpdateScheduleRequest,
) -> ScheduleResponse:
    """Pause, resume or change a schedule; null leaves a field as it is."""
    with service.database.read() as session:
        schedule = _get_visible_schedule(session, principal, project, name)
    if body.revision is not None and body.revision != schedule.revision:
        raise LostUpdate(f"schedule {name}", body.revision, schedule.revision)
    changes = body.model_dump(exclude={"revision"}, exclude_none=True)
    updated = _apply_changes(schedule, changes)
    check_cron(updated.cron, updated.time_zone)
    if {"spec", "cluster"} & changes.keys():
        service.intake.resolve(make_submission(updated))
    resumed = schedule.paused and changes.get("paused") is False
    # Firings that were missed while it was paused, or by the old cron expression, are not made up.
    if resumed or TIMING_FIELDS & changes.keys():
        changes["next_at"] = find_next_firing(updated, service.clock.now())
    if not changes:
        return ScheduleResponse.model_validate(schedule)
    with service.database.write() as session:
        if "priority" in changes:
            quotas.check_priority(projects.get(session, project), changes["priority"])
        changed = schedules.update_schedule(session, schedule, **changes)
        record_schedule(session, actor, schedule, changed)
    return ScheduleResponse.model_validate(changed)


@router.delete(
    "/{project}/{name}",
    status_code=204,
    response_class=Response,
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def delete_schedule(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    project: NamePath,
    name: NamePath,
) -> Response:
    """Delete a schedule. Its runs stay."""
    with service.database.write() as session:
        schedule = _get_visible_schedule(session, principal, project, name)
        schedules.remove(session, schedule)
        record_schedule(session, actor, schedule, None)
    return Response(status_code=204)


@router.get(
    "/{project}/{name}/firings",
    responses=describe_problems(404),
    openapi_extra=requires_scope("viewer"),
)
def list_firings(
    principal: CurrentPrincipal,
    service: ServiceDep,
    project: NamePath,
    name: NamePath,
    limit: Limit = cursor.PAGE_SIZE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Page[FiringResponse]:
    """Return the firings of a schedule, the newest first."""
    page_key = cursor.decode_cursor(FiringPageKey, after)
    before = None if page_key is None else page_key.due_at
    with service.database.read() as session:
        schedule = _get_visible_schedule(session, principal, project, name)
        records = schedules.list_firings(session, schedule, before=before, limit=limit + 1)
    return make_page(FiringResponse, FiringPageKey, records, limit)


def _get_visible_schedule(
    session: Session, principal: Principal, project: str, name: str
) -> Schedule:
    if not principal.can_access(project):
        raise UnknownItem("schedule", name)
    return schedules.get(session, project, name)


def _apply_changes(schedule: Schedule, changes: dict[str, Any]) -> NewSchedule:
    """Return the schedule with the changes applied."""
    current = {name: getattr(schedule, name) for name in NewSchedule.model_fields}
    applicable = {name: value for name, value in changes.items() if name in current}
    return NewSchedule(**{**current, "spec": dict(schedule.spec), **applicable})
