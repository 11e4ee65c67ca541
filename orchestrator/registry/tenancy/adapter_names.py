"""The owners of adapter names: the project whose adapter was the first of a name in a store.

A name is claimed with its first committed version and not before, so that a run that fails takes no
name from anybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.registry import projects
from orchestrator.registry.database import insert_once
from orchestrator.registry.errors import NameTaken
from orchestrator.registry.tables import AdapterNameRow


def claim(session: Session, store: str, name: str, project: str) -> None:
    """Make the project the owner of a name if nobody is. Raise NameTaken if another one is."""
    owner = session.get(AdapterNameRow, (store, name))
    if owner is None:
        projects.ensure_project(session, project)
        values = {"store": store, "name": name, "project": project}
        if insert_once(session, AdapterNameRow, values, timestamp_columns=("created_at",)):
            return
        # Another transaction claimed it meanwhile.
        owner = session.get_one(AdapterNameRow, (store, name))
    if owner.project != project:
        raise NameTaken(name)


def find_taken(session: Session, stores: Sequence[str], name: str, project: str) -> set[str]:
    """Return those of the stores in which another project owns the name."""
    query = select(AdapterNameRow.store).where(
        AdapterNameRow.store.in_(stores),
        AdapterNameRow.name == name,
        AdapterNameRow.project != project,
    )
    return set(session.scalars(query))
