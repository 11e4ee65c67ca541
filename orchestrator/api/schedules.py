"""Routes of schedules: add, list, change, remove, and what came of their moments."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from jobs.store.manifest import Name
from orchestrator.api import cursor
from orchestrator.api.access import Asker, Guarded, Who, needs
from orchestrator.api.answers import FiringAnswer, Page, ScheduleAnswer
from orchestrator.api.cursor import Cursor, Limit, Place, written
from orchestrator.api.given import AskedSchedule, NamePath, NameQuery, ScheduleChange
from orchestrator.api.parts import Behind, own_project
from orchestrator.api.problems import documented
from orchestrator.registry import schedules
from orchestrator.registry.errors import LostUpdate, Unknown
from orchestrator.registry.schedules import NewSchedule, Schedule
from orchestrator.service.cron import check_cron, offset_of
from orchestrator.service.intake import Submission
from orchestrator.service.loop import Service
from orchestrator.service.scheduler import first_moment

MOMENTS = {"cron", "time_zone", "jitter_s"}
"""What its next moment follows from."""

router = APIRouter(prefix="/v1/schedules", tags=["schedules"], route_class=Guarded)


class SchedulePlace(Place):
    """A schedule among all, by project and name."""

    project: Name
    name: Name


class FiringPlace(Place):
    """A moment of a schedule, the newest first."""

    due_at: float


@router.get(
    "", response_model=Page[ScheduleAnswer], responses=documented(), openapi_extra=needs("viewer")
)
def listed(
    who: Asker,
    service: Behind,
    project: NameQuery = None,
    limit: Limit = cursor.PAGE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Page[ScheduleAnswer]:
    """Schedules, by project and name."""
    place = cursor.read(SchedulePlace, after)
    if project is not None and not who.sees(project):
        return Page(items=[], next=None)
    behind = "" if place is None else f"{place.project}/{place.name}"
    with service.database.read() as session:
        found = schedules.page(
            session, project=project or who.project, after=behind, limit=limit + 1
        )
    last = found[limit - 1] if len(found) > limit else None
    follows = None if last is None else written(SchedulePlace(project=last.project, name=last.name))
    return Page(items=[ScheduleAnswer.model_validate(one) for one in found[:limit]], next=follows)


@router.post(
    "",
    status_code=201,
    response_model=ScheduleAnswer,
    responses=documented(404, 409),
    openapi_extra=needs("submitter"),
)
def add(
    who: Asker,
    service: Behind,
    asked: AskedSchedule,
) -> ScheduleAnswer:
    """Add a schedule; what it would submit is checked now."""
    project = own_project(service, who, asked.project)
    new = NewSchedule(**{**asked.model_dump(), "project": project})
    check_cron(new.cron, new.time_zone)
    _check_spec(service, new)
    first = _next(service, new)
    with service.database.write() as session:
        return ScheduleAnswer.model_validate(schedules.add(session, new, next_at=first))


@router.get(
    "/{project}/{name}",
    response_model=ScheduleAnswer,
    responses=documented(404),
    openapi_extra=needs("viewer"),
)
def show(
    who: Asker,
    service: Behind,
    project: NamePath,
    name: NamePath,
) -> ScheduleAnswer:
    """One schedule."""
    with service.database.read() as session:
        return ScheduleAnswer.model_validate(_visible(session, who, project, name))


@router.patch(
    "/{project}/{name}",
    response_model=ScheduleAnswer,
    responses=documented(404, 409),
    openapi_extra=needs("submitter"),
)
def change(
    who: Asker,
    service: Behind,
    project: NamePath,
    name: NamePath,
    asked: ScheduleChange,
) -> ScheduleAnswer:
    """Pause or resume it, or change what it does; null changes nothing."""
    with service.database.read() as session:
        there = _visible(session, who, project, name)
    if asked.revision is not None and asked.revision != there.revision:
        raise LostUpdate(f"schedule {name}", asked.revision, there.revision)
    changes = asked.model_dump(exclude={"revision"}, exclude_none=True)
    wanted = _changed(there, changes)
    check_cron(wanted.cron, wanted.time_zone)
    if {"spec", "cluster"} & changes.keys():
        _check_spec(service, wanted)
    resumed = there.paused and changes.get("paused") is False
    # Not while it was paused, and not by the old moments: what follows is counted from now on.
    if resumed or MOMENTS & changes.keys():
        changes["next_at"] = _next(service, wanted)
    if not changes:
        return ScheduleAnswer.model_validate(there)
    with service.database.write() as session:
        return ScheduleAnswer.model_validate(schedules.change(session, there, **changes))


@router.delete(
    "/{project}/{name}",
    status_code=204,
    response_class=Response,
    responses=documented(404, 409),
    openapi_extra=needs("submitter"),
)
def remove(
    who: Asker,
    service: Behind,
    project: NamePath,
    name: NamePath,
) -> Response:
    """Take it away; its runs stay."""
    with service.database.write() as session:
        schedules.remove(session, _visible(session, who, project, name))
    return Response(status_code=204)


@router.get(
    "/{project}/{name}/firings",
    response_model=Page[FiringAnswer],
    responses=documented(404),
    openapi_extra=needs("viewer"),
)
def firings(
    who: Asker,
    service: Behind,
    project: NamePath,
    name: NamePath,
    limit: Limit = cursor.PAGE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Page[FiringAnswer]:
    """What came of its moments, the newest first."""
    place = cursor.read(FiringPlace, after)
    before = None if place is None else place.due_at
    with service.database.read() as session:
        there = _visible(session, who, project, name)
        found = schedules.firings(session, there, before=before, limit=limit + 1)
    follows = written(FiringPlace(due_at=found[limit - 1].due_at)) if len(found) > limit else None
    return Page(items=[FiringAnswer.model_validate(one) for one in found[:limit]], next=follows)


def _visible(session: Session, who: Who, project: str, name: str) -> Schedule:
    if not who.sees(project):
        raise Unknown("schedule", name)
    return schedules.get(session, project, name)


def _changed(there: Schedule, changes: dict[str, Any]) -> NewSchedule:
    """The schedule as it would be."""
    kept = {name: getattr(there, name) for name in NewSchedule.model_fields}
    known = {name: value for name, value in changes.items() if name in kept}
    return NewSchedule(**{**kept, "spec": dict(there.spec), **known})


def _check_spec(service: Service, new: NewSchedule) -> None:
    service.intake.check(
        Submission(
            kind=new.kind,
            spec=new.spec,
            project=new.project,
            cluster=new.cluster,
            priority=new.priority,
        )
    )


def _next(service: Service, new: NewSchedule) -> float | None:
    offset = offset_of(new.project, new.name, new.jitter_s)
    return first_moment(new.cron, new.time_zone, offset=offset, now=service.clock.now())
