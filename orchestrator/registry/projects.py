"""Projects, which own runs, adapters and tokens, and their limits."""

from __future__ import annotations

from typing import cast

from sqlalchemy import Table, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.registry.database import insert_once
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import DuplicateKey, LostUpdate, UnknownItem
from orchestrator.registry.tables import ProjectRow
from orchestrator.registry.values import Project, ProjectLimits, check_name, make_value

_PROJECTS = cast(Table, ProjectRow.__table__)
_BY_NAME = select(*_PROJECTS.c).where(_PROJECTS.c.name == bindparam("named"))


def ensure_project(session: Session, name: str) -> Project:
    """Return the project, and create it without limits if it is new."""
    check_name(name, "project")
    row = session.execute(_BY_NAME, {"named": name}).first()
    if row is not None:
        return make_value(Project, row)
    # Another transaction may create it meanwhile.
    insert_once(
        session, ProjectRow, {"name": name, "revision": 1}, timestamp_columns=("created_at",)
    )
    return get(session, name)


def get(session: Session, name: str) -> Project:
    """Read a project. Raise UnknownItem."""
    row = session.scalar(select(ProjectRow).where(ProjectRow.name == name))
    if row is None:
        raise UnknownItem("project", name)
    return make_value(Project, row)


def add(session: Session, name: str, limits: ProjectLimits) -> Project:
    """Create a project. Raise DuplicateKey."""
    check_name(name, "project")
    values = {"name": name, "created_at": now(), "revision": 1, **limits.model_dump()}
    try:
        with session.begin_nested():
            session.execute(insert(ProjectRow).values(values))
    except IntegrityError as error:
        raise DuplicateKey("project", name) from error
    return get(session, name)


def list_projects(session: Session) -> list[Project]:
    """List all projects by name."""
    rows = session.scalars(select(ProjectRow).order_by(ProjectRow.name))
    return [make_value(Project, row) for row in rows]


def set_limits(session: Session, project: Project, limits: ProjectLimits) -> Project:
    """Replace the limits of a project. Raise LostUpdate."""
    row = session.scalar(
        update(ProjectRow)
        .where(ProjectRow.name == project.name, ProjectRow.revision == project.revision)
        .values(**limits.model_dump(), revision=ProjectRow.revision + 1)
        .returning(ProjectRow)
        .execution_options(populate_existing=True)
    )
    if row is None:
        current = get(session, project.name)
        raise LostUpdate(f"project {project.name}", project.revision, current.revision)
    return make_value(Project, row)
