"""The index of what stores hold: committed adapters, what bare names mean, and searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, insert, select, tuple_
from sqlalchemy.orm import Session

from jobs.store.adapters.manifest import Manifest
from orchestrator.registry import projects
from orchestrator.registry.tables import AdapterRow, PointerRow, RunRow, SearchRow
from orchestrator.registry.values import clean_text, make_value

VersionKey = tuple[str, int]
"""Name and version."""


@dataclass(frozen=True)
class Adapter:
    """A committed version; its manifest is what the store has."""

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
        """The name that resolves to this version and no other."""
        return f"{self.name}@v{self.version}"


@dataclass(frozen=True)
class AdapterPointer:
    """What a bare name means, and how many moves led there."""

    store: str
    name: str
    version: int
    move: int


@dataclass(frozen=True)
class SearchSummary:
    """What a search looks for, and what it has found so far."""

    run: str
    metric: str
    direction: str
    trials: Mapping[str, int]
    """How many of each status."""
    best_run: str | None = None
    best_metric: float | None = None
    adapter: str | None = None


def put(session: Session, store: str, manifest: Manifest, *, project: str) -> bool:
    """Keep a version, in its run's project where the run is known; whether anything changed."""
    owner = session.scalar(select(RunRow.project).where(RunRow.id == manifest.run)) or project
    row = session.get(AdapterRow, (store, manifest.name, manifest.version))
    values = _make_values(store, manifest)
    if row is None:
        projects.ensure_project(session, owner)
        session.execute(insert(AdapterRow).values({**values, "project": owner}))
        return True
    return _update_row(row, values)


def set_pointer(session: Session, store: str, name: str, version: int, move: int) -> bool:
    """What a bare name means now; whether that is news."""
    row = session.get(PointerRow, (store, name))
    if row is None:
        values = {"store": store, "name": name, "version": version, "move": move}
        session.execute(insert(PointerRow).values(values))
        return True
    return _update_row(row, {"version": version, "move": move})


def set_pointer_if_known(session: Session, store: str, name: str, version: int, move: int) -> bool:
    """The same where the version is known and no later move is: a look may come late."""
    row = session.get(PointerRow, (store, name))
    if session.get(AdapterRow, (store, name, version)) is None:
        return False
    if row is not None and row.move > move:
        return False
    return set_pointer(session, store, name, version, move)


def remove(session: Session, store: str, version_key: VersionKey) -> None:
    """The version is in its store no more; the pointer to it goes along."""
    name, version = version_key
    session.execute(
        delete(AdapterRow).where(
            AdapterRow.store == store, AdapterRow.name == name, AdapterRow.version == version
        )
    )


def remove_pointer(session: Session, store: str, name: str) -> None:
    """Nothing of this name is promoted any more."""
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
    """By store, name and version, from behind `after` on."""
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
    """What a bare name means, as far as is known."""
    row = session.get(PointerRow, (store, name))
    return None if row is None else make_value(AdapterPointer, row)


def list_pointers(session: Session, store: str) -> list[AdapterPointer]:
    """What the bare names of a store mean."""
    query = select(PointerRow).where(PointerRow.store == store).order_by(PointerRow.name)
    return [make_value(AdapterPointer, row) for row in session.scalars(query)]


def put_search(session: Session, summary: SearchSummary) -> bool:
    """Keep what a search has found; whether anything changed. Its run has to be there."""
    values = {**vars(summary), "trials": dict(summary.trials)}
    row = session.get(SearchRow, summary.run)
    if row is None:
        session.execute(insert(SearchRow).values(values))
        return True
    return _update_row(row, values)


def list_searches(session: Session) -> list[SearchSummary]:
    """All of them, by their ids, which sort by time within a name."""
    rows = session.scalars(select(SearchRow).order_by(SearchRow.run))
    return [make_value(SearchSummary, row) for row in rows]


def _make_values(store: str, manifest: Manifest) -> dict[str, Any]:
    committed = datetime.strptime(manifest.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return {
        "store": store,
        "name": manifest.name,
        "version": manifest.version,
        "run": manifest.run,
        "attempt": manifest.attempt,
        "kind": manifest.kind,
        # Free words, in which a NUL may stand; the manifest beside it has them as JSON.
        "parent": None if manifest.parent is None else clean_text(manifest.parent),
        "search": manifest.search,
        "base_digest": manifest.base.digest,
        "size": manifest.size,
        "committed_at": committed.timestamp(),
        "manifest": manifest.model_dump(mode="json"),
    }


def _update_row(row: Any, values: Mapping[str, Any]) -> bool:
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    return bool(changed)
