"""Routes of adapters: what there is, and what a bare name means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy.orm import Session

from jobs.errors import Fault, InputError
from jobs.store import pointer
from jobs.store.manifest import Name
from jobs.store.objects import ObjectStore, open_store
from jobs.store.pointer import Pointer
from orchestrator.api import cursor
from orchestrator.api.access import Asker, Guarded, Who, needs
from orchestrator.api.answers import (
    AdapterAnswer,
    AdapterDetail,
    NameAnswer,
    Page,
    PointerAnswer,
)
from orchestrator.api.cursor import Cursor, Limit, Place, written
from orchestrator.api.given import NamePath, NameQuery, Promotion, StoreQuery, VersionPath
from orchestrator.api.parts import Behind
from orchestrator.api.problems import documented
from orchestrator.registry import adapters
from orchestrator.registry.adapters import Adapter
from orchestrator.registry.errors import Taken, Unknown
from orchestrator.service.loop import Service

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=Guarded)


class AdapterPlace(Place):
    """A version among all, by store, name and number."""

    store: str = Field(max_length=4096, pattern=r"^[^\x00-\x1f]*$")
    name: Name
    version: int = Field(ge=1, lt=2**31)


@router.get(
    "", response_model=Page[AdapterAnswer], responses=documented(), openapi_extra=needs("viewer")
)
def listed(
    who: Asker,
    service: Behind,
    project: NameQuery = None,
    name: NameQuery = None,
    limit: Limit = cursor.PAGE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Page[AdapterAnswer]:
    """Committed versions, by store, name and number."""
    place = cursor.read(AdapterPlace, after)
    if project is not None and not who.sees(project):
        return Page(items=[], next=None)
    behind = None if place is None else (place.store, place.name, place.version)
    with service.database.read() as session:
        found = adapters.page(
            session, project=project or who.project, name=name, after=behind, limit=limit + 1
        )
    last = found[limit - 1] if len(found) > limit else None
    follows = (
        None
        if last is None
        else written(AdapterPlace(store=last.store, name=last.name, version=last.version))
    )
    return Page(items=[AdapterAnswer.model_validate(one) for one in found[:limit]], next=follows)


@router.get(
    "/{name}", response_model=NameAnswer, responses=documented(404), openapi_extra=needs("viewer")
)
def named(
    who: Asker,
    service: Behind,
    name: NamePath,
    store: StoreQuery = None,
) -> NameAnswer:
    """What a bare name means in its store, and the versions that there are."""
    with service.database.read() as session:
        versions = _of_name(session, who, name, store)
        current = adapters.current(session, versions[0].store, name)
    seen = current is not None and any(one.version == current.version for one in versions)
    return NameAnswer(
        store=versions[0].store,
        name=name,
        current=PointerAnswer.model_validate(current) if seen else None,
        versions=[AdapterAnswer.model_validate(one) for one in versions],
    )


@router.get(
    "/{name}/{version:int}",
    response_model=AdapterDetail,
    responses=documented(404),
    openapi_extra=needs("viewer"),
)
def show(
    who: Asker,
    service: Behind,
    name: NamePath,
    version: VersionPath,
    store: StoreQuery = None,
) -> AdapterDetail:
    """One version with its manifest."""
    with service.database.read() as session:
        versions = _of_name(session, who, name, store)
    found = next((one for one in versions if one.version == version), None)
    if found is None:
        raise Unknown("adapter", f"{name}@v{version}")
    return AdapterDetail.model_validate(found)


@router.post(
    "/{name}/promote",
    response_model=PointerAnswer,
    responses=documented(404, 409),
    openapi_extra=needs("submitter"),
)
def promote(
    who: Asker,
    service: Behind,
    name: NamePath,
    asked: Promotion,
    store: StoreQuery = None,
) -> PointerAnswer:
    """Let the bare name mean this version. The same again is no move."""
    versions = _movable(service, who, name, store)
    if all(one.version != asked.version for one in versions):
        raise Unknown("adapter", f"{name}@v{asked.version}")
    return _moved(
        service,
        versions[0].store,
        name,
        lambda opened: pointer.promote(opened, name, asked.version),
    )


@router.post(
    "/{name}/rollback",
    response_model=PointerAnswer,
    responses=documented(404, 409),
    openapi_extra=needs("submitter"),
)
def rollback(
    who: Asker,
    service: Behind,
    name: NamePath,
    store: StoreQuery = None,
) -> PointerAnswer:
    """Let the bare name mean what it meant before the last promotion that still stands."""
    versions = _movable(service, who, name, store)
    return _moved(service, versions[0].store, name, lambda opened: pointer.rollback(opened, name))


def _moved(
    service: Service, store: str, name: str, move: Callable[[ObjectStore], Pointer]
) -> PointerAnswer:
    """The store's pointer first, which is the truth; then what the registry knows of it."""
    there = move(open_store(store))
    number = there.moves[-1].number
    with service.database.write() as session:
        adapters.point_if_there(session, store, name, there.version, number)
    return PointerAnswer(store=store, name=name, version=there.version, move=number)


def _of_name(session: Session, who: Who, name: str, store: str | None) -> list[Adapter]:
    """The versions of a name in one store, as far as the asker sees any. Raises Unknown."""
    found = adapters.page(session, project=who.project, name=name, limit=None)
    if store is not None:
        found = [one for one in found if one.store.rstrip("/") == store.rstrip("/")]
    stores = sorted({one.store for one in found})
    if not found:
        raise Unknown("adapter", name)
    if len(stores) > 1:
        problem = f"{name} lies in {len(stores)} stores"
        raise InputError([Fault("store", problem, f"Name one: {', '.join(stores)}.")])
    return found


def _movable(service: Service, who: Who, name: str, store: str | None) -> list[Adapter]:
    """The same where the name is the asker's alone: its pointer is what others' users follow too.

    Raises Unknown, Taken.
    """
    with service.database.read() as session:
        own = _of_name(session, who, name, store)
        every = adapters.page(session, name=name, store=own[0].store, limit=None)
    if len(every) != len(own):
        raise Taken("name", name)
    return own
