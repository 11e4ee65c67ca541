"""The identity of a registry: which of two services with one name submitted a job, accepted a run.

It is drawn by the migration and never changes, except that a registry which was rebuilt from a
store takes over the identity of the one that was lost.
"""

from __future__ import annotations

import re

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.errors import Fault, InputError
from orchestrator.registry.database import Database
from orchestrator.registry.tables import InstanceRow

INSTANCE_PATTERN = r"^[0-9a-f]{32}$"


def get_instance(session: Session) -> str:
    """Return the id of this registry."""
    return session.scalars(select(InstanceRow.id)).one()


def read_instance(database: Database) -> str:
    """Return the id of a database's registry, in a transaction of its own."""
    with database.read() as session:
        return get_instance(session)


def set_instance(session: Session, instance: str) -> None:
    """Take over the id of a lost registry. Raise InputError if it is not an id."""
    if not re.fullmatch(INSTANCE_PATTERN, instance):
        problem = f"{instance[:80]!a} is not the id of a registry"
        remedy = "Use the 32 hexadecimal digits that the service logs as `slora_instance`."
        raise InputError([Fault("--instance", problem, remedy)])
    session.execute(update(InstanceRow).values(id=instance))
