"""Projects: what runs, adapters and tokens belong to, and how much each may use."""

from __future__ import annotations

from typing import cast

from sqlalchemy import Table, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.registry.clock import now
from orchestrator.registry.database import insert_once
from orchestrator.registry.errors import LostUpdate, Taken, Unknown
from orchestrator.registry.models import ProjectRow
from orchestrator.registry.values import Limits, Project, name_of, value_of

_PROJECTS = cast(Table, ProjectRow.__table__)
_BY_NAME = select(*_PROJECTS.c).where(_PROJECTS.c.name == bindparam("named"))


def ensure(session: Session, name: str) -> Project:
    """The project, which is made if it is new, without limits."""
    name_of(name, "project")
    there = session.execute(_BY_NAME, {"named": name}).first()
    if there is not None:
        return value_of(Project, there)
    # Somebody may make it meanwhile.
    insert_once(session, ProjectRow, {"name": name, "revision": 1}, at=("created_at",))
    return project(session, name)


def project(session: Session, name: str) -> Project:
    """The project, or Unknown."""
    found = session.scalar(select(ProjectRow).where(ProjectRow.name == name))
    if found is None:
        raise Unknown("project", name)
    return value_of(Project, found)


def add(session: Session, name: str, limits: Limits) -> Project:
    """A new project. Raises Taken."""
    name_of(name, "project")
    values = {"name": name, "created_at": now(), "revision": 1, **limits.model_dump()}
    try:
        with session.begin_nested():
            session.execute(insert(ProjectRow).values(values))
    except IntegrityError as error:
        raise Taken("project", name) from error
    return project(session, name)


def listed(session: Session) -> list[Project]:
    """All of them, by name."""
    rows = session.scalars(select(ProjectRow).order_by(ProjectRow.name))
    return [value_of(Project, row) for row in rows]


def set_limits(session: Session, there: Project, limits: Limits) -> Project:
    """What the project may use from now on. Raises LostUpdate."""
    found = session.scalar(
        update(ProjectRow)
        .where(ProjectRow.name == there.name, ProjectRow.revision == there.revision)
        .values(**limits.model_dump(), revision=ProjectRow.revision + 1)
        .returning(ProjectRow)
        .execution_options(populate_existing=True)
    )
    if found is None:
        current = project(session, there.name)
        raise LostUpdate(f"project {there.name}", there.revision, current.revision)
    return value_of(Project, found)
