"""Projects, which own runs, adapters and tokens: their limits, and what they may read."""

from __future__ import annotations

from typing import cast

from sqlalchemy import Table, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from orchestrator.registry.database import insert_once
from orchestrator.registry.db_clock import now
from orchestrator.registry.errors import DuplicateKey, LostUpdate, UnknownItem
from orchestrator.registry.tables import ProjectRow
from orchestrator.registry.values import (
    DEFAULT_PROJECT,
    Project,
    ProjectInputs,
    ProjectLimits,
    check_name,
    make_project,
)

_PROJECTS = cast(Table, ProjectRow.__table__)
_UNRESTRICTED = ProjectInputs(places=None, models=None)
_BY_NAME = select(*_PROJECTS.c).where(_PROJECTS.c.name == bindparam("named"))


def ensure_project(session: Session, name: str) -> Project:
    """Return the project, and create it without limits if it is new: `default` may read anything,
    another one nothing but its own store.
    """
    check_name(name, "project")
    row = session.execute(_BY_NAME, {"named": name}).first()
    if row is not None:
        return make_project(row)
    # Another transaction may create it meanwhile.
    inputs = _UNRESTRICTED if name == DEFAULT_PROJECT else ProjectInputs()
    values = {"name": name, "revision": 1, **inputs.model_dump(mode="json")}
    insert_once(session, ProjectRow, values, timestamp_columns=("created_at",))
    return get(session, name)


def find(session: Session, name: str) -> Project:
    """Read a project; return what `ensure_project` would create if it does not exist."""
    row = session.execute(_BY_NAME, {"named": name}).first()
    if row is not None:
        return make_project(row)
    inputs = _UNRESTRICTED if name == DEFAULT_PROJECT else ProjectInputs()
    limits = ProjectLimits().model_dump()
    return Project(name=name, **limits, **inputs.model_dump(), created_at=0.0, revision=0)


def get(session: Session, name: str) -> Project:
    """Read a project. Raise UnknownItem."""
    row = session.scalar(select(ProjectRow).where(ProjectRow.name == name))
    if row is None:
        raise UnknownItem("project", name)
    return make_project(row)


def add(
    session: Session, name: str, limits: ProjectLimits, inputs: ProjectInputs | None = None
) -> Project:
    """Create a project, which may read nothing but its own store by default. Raise DuplicateKey."""
    check_name(name, "project")
    read = (inputs or ProjectInputs()).model_dump(mode="json")
    values = {"name": name, "created_at": now(), "revision": 1, **limits.model_dump(), **read}
    try:
        with session.begin_nested():
            session.execute(insert(ProjectRow).values(values))
    except IntegrityError as error:
        raise DuplicateKey("project", name) from error
    return get(session, name)


def list_projects(session: Session) -> list[Project]:
    """List all projects by name."""
    rows = session.scalars(select(ProjectRow).order_by(ProjectRow.name))
    return [make_project(row) for row in rows]


def set_limits(
    session: Session, project: Project, limits: ProjectLimits, inputs: ProjectInputs | None = None
) -> Project:
    """Replace the limits of a project, and what it may read if that is given. Raise LostUpdate."""
    read = {} if inputs is None else inputs.model_dump(mode="json")
    row = session.scalar(
        update(ProjectRow)
        .where(ProjectRow.name == project.name, ProjectRow.revision == project.revision)
        .values(**limits.model_dump(), **read, revision=ProjectRow.revision + 1)
        .returning(ProjectRow)
        .execution_options(populate_existing=True)
    )
    if row is None:
        current = get(session, project.name)
        raise LostUpdate(f"project {project.name}", project.revision, current.revision)
    return make_project(row)
