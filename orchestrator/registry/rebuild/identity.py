"""Choose the identity of a rebuilt registry: that of the lost one, if the store is sure of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.registry.tables import RunRow, ScheduleRow
from orchestrator.registry.tenancy.instances import get_instance, set_instance

OWN_INSTANCE = "own"
"""Requests that the registry keeps its id."""


@dataclass(frozen=True)
class Identity:
    """The id of a registry after a rebuild."""

    instance: str = ""
    previous: str = ""
    """The id before."""
    others: Mapping[str, int] = field(default_factory=dict)
    """The other registries that accepted runs of the store, with the number of these runs."""


def has_history(session: Session) -> bool:
    """Return whether the registry holds runs or schedules, so that its id is in use."""
    tables = (RunRow.id, ScheduleRow.id)
    return any(session.scalar(select(column).limit(1)) is not None for column in tables)


def settle_identity(
    session: Session, accepted_by: Mapping[str, int], *, is_new: bool, requested: str | None
) -> Identity:
    """Take over the requested id, or in a new registry the only one that the store's runs name.

    Raise InputError if the requested id is not valid.
    """
    current = get_instance(session)
    if requested is not None:
        target = current if requested == OWN_INSTANCE else requested
    else:
        target = next(iter(accepted_by)) if is_new and len(accepted_by) == 1 else current
    if target != current:
        set_instance(session, target)
    others = {instance: count for instance, count in accepted_by.items() if instance != target}
    return Identity(target, current, others)
