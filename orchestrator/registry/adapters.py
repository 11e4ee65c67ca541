"""The index of the stores: committed adapter versions, pointers and searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, tuple_
from sqlalchemy.orm import Session

from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.versions import MAX_VERSION_GAP
from orchestrator.registry.database import update_row
from orchestrator.registry.errors import VersionJumped
from orchestrator.registry.tables import AdapterRow, PointerRow, RunRow, SearchRow
from orchestrator.registry.tenancy import adapter_names
from orchestrator.registry.values import clean_text, make_value

VersionKey = tuple[str, int]
"""Name and version."""


@dataclass(frozen=True)
class Adapter:
    """A committed version with its manifest."""

    store: str
    name: str
    version: int
    project: str
    run: str
    attempt: int
    kind: str
    parent: str | None
    search: str | None
    base_digest: str
    size: int
    committed_at: float
    manifest: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Return the name that resolves to this version only."""
        return f"{self.name}@v{self.version}"


@dataclass(frozen=True)
class AdapterPointer:
    """The version that a bare name resolves to, and the number of the pointer's last move."""

    store: str
    name: str
    version: int
    move: int


@dataclass(frozen=True)
class SearchSummary:
    """The goal of a search and its results so far."""

    run: str
    metric: str
    direction: str
    trials: Mapping[str, int]
    """Number of trials by status."""
    best_run: str | None = None
    best_metric: float | None = None
    adapter: str | None = None


def put(session: Session, store: str, manifest: Manifest, *, project: str) -> bool:
    """Insert or update a version of the project whose store this is. Return whether it changed.

    A run in the same store whose project is known has it from there: stores were shared before.
    Raise NameTaken if another project owns the name, and VersionJumped if the number jumps.
    """
    values = _make_values(store, manifest)
    row = session.get(AdapterRow, (store, manifest.name, manifest.version))
    if row is not None:
        return update_row(row, values)
    in_store = select(RunRow.project).where(RunRow.id == manifest.run, RunRow.store == store)
    owner = session.scalar(in_store) or project
    adapter_names.claim(session, store, manifest.name, owner)
    _check_number(session, store, manifest)
    session.execute(insert(AdapterRow).values({**values, "project": owner}))
    return True


def _check_number(session: Session, store: str, manifest: Manifest) -> None:
    newest = session.scalar(
        select(func.max(AdapterRow.version)).where(
            AdapterRow.store == store, AdapterRow.name == manifest.name
        )
    )
    if manifest.version > (newest or 0) + MAX_VERSION_GAP:
        raise VersionJumped(manifest.label, newest or 0)


def set_pointer(session: Session, store: str, name: str, version: int, move: int) -> bool:
    """Set the version that a bare name resolves to. Return whether anything changed."""
    row = session.get(PointerRow, (store, name))
    if row is None:
        values = {"store": store, "name": name, "version": version, "move": move}
        session.execute(insert(PointerRow).values(values))
        return True
    return update_row(row, {"version": version, "move": move})


def set_pointer_if_known(session: Session, store: str, name: str, version: int, move: int) -> bool:
    """Set a pointer unless its version is unknown or a later move is recorded."""
    row = session.get(PointerRow, (store, name))
    if session.get(AdapterRow, (store, name, version)) is None:
        return False
    if row is not None and row.move > move:
        return False
    return set_pointer(session, store, name, version, move)


def remove(session: Session, store: str, version_key: VersionKey) -> None:
    """Delete a version that its store no longer holds, and the pointer to it."""
    name, version = version_key
    session.execute(
        delete(AdapterRow).where(
            AdapterRow.store == store, AdapterRow.name == name, AdapterRow.version == version
        )
    )


def remove_pointer(session: Session, store: str, name: str) -> None:
    """Delete the pointer of a name."""
    session.execute(delete(PointerRow).where(PointerRow.store == store, PointerRow.name == name))


def list_page(
    session: Session,
    *,
    project: str | None = None,
    name: str | None = None,
    store: str | None = None,
    after: tuple[str, str, int] | None = None,
    limit: int | None = 100,
) -> list[Adapter]:
    """List versions by store, name and version, starting after `after`."""
    key = (AdapterRow.store, AdapterRow.name, AdapterRow.version)
    query = select(AdapterRow).order_by(*key).limit(limit)
    for column, value in (
        (AdapterRow.project, project),
        (AdapterRow.name, name),
        (AdapterRow.store, store),
    ):
        if value is not None:
            query = query.where(column == value)
    if after is not None:
        query = query.where(tuple_(*key) > tuple_(*after))
    return [make_value(Adapter, row) for row in session.scalars(query)]


def get_pointer(session: Session, store: str, name: str) -> AdapterPointer | None:
    """Return the pointer of a name, if it is known."""
    row = session.get(PointerRow, (store, name))
    return None if row is None else make_value(AdapterPointer, row)


def list_pointers(session: Session, store: str) -> list[AdapterPointer]:
    """List the pointers of a store by name."""
    query = select(PointerRow).where(PointerRow.store == store).order_by(PointerRow.name)
    return [make_value(AdapterPointer, row) for row in session.scalars(query)]


def put_search(session: Session, summary: SearchSummary) -> bool:
    """Insert or update a search, whose run must exist. Return whether anything changed."""
    values = {**vars(summary), "trials": dict(summary.trials)}
    row = session.get(SearchRow, summary.run)
    if row is None:
        session.execute(insert(SearchRow).values(values))
        return True
    return update_row(row, values)


def _make_values(store: str, manifest: Manifest) -> dict[str, Any]:
    committed = datetime.strptime(manifest.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return {
        "store": store,
        "name": manifest.name,
        "version": manifest.version,
        "run": manifest.run,
        "attempt": manifest.attempt,
        "kind": manifest.kind,
        # Free text that may contain a NUL; the manifest column holds it as JSON.
        "parent": None if manifest.parent is None else clean_text(manifest.parent),
        "search": manifest.search,
        "base_digest": manifest.base.digest,
        "size": manifest.size,
        "committed_at": committed.timestamp(),
        "manifest": manifest.model_dump(mode="json"),
    }
