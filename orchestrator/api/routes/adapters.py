"""Routes of adapters: list versions, show them, promote one, roll back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field, ValidationError
from sqlalchemy.orm import Session

from jobs.errors import Fault, InputError, StoreError
from jobs.spec.limits import VersionNumber
from jobs.store.adapters import pointer
from jobs.store.adapters.manifest import Manifest, Name
from jobs.store.adapters.pointer import Pointer
from jobs.store.adapters.serving_options import list_serving_options, read_adapter_config
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.api import cursor
from orchestrator.api.audit_values import record_pointer
from orchestrator.api.auth import AuthenticatedRoute, CurrentPrincipal, Principal, requires_scope
from orchestrator.api.cursor import Cursor, Limit, PageKey, make_page
from orchestrator.api.deps import CurrentActor, ServiceDep
from orchestrator.api.parameters import NamePath, NameQuery, StoreQuery, VersionPath
from orchestrator.api.problems import describe_problems
from orchestrator.control.supervisor import Service
from orchestrator.registry import adapters
from orchestrator.registry.adapters import Adapter, AdapterPointer
from orchestrator.registry.errors import DuplicateKey, UnknownItem
from orchestrator.registry.tenancy.project_store import get_project_store
from orchestrator.schemas.adapters import (
    AdapterDetailResponse,
    AdapterNameResponse,
    AdapterResponse,
    PointerResponse,
    PromoteAdapterRequest,
    ServingOptionResponse,
)
from orchestrator.schemas.base import Page

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=AuthenticatedRoute)


class AdapterPageKey(PageKey):
    """Key of a version in the list, which is sorted by store, name and number."""

    store: str = Field(max_length=4096, pattern=r"^[^\x00-\x1f]*$")
    name: Name
    version: VersionNumber


@router.get(
    "",
    responses=describe_problems(),
    openapi_extra=requires_scope("viewer"),
)
def list_adapters(
    principal: CurrentPrincipal,
    service: ServiceDep,
    project: NameQuery = None,
    name: NameQuery = None,
    limit: Limit = cursor.PAGE_SIZE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Page[AdapterResponse]:
    """Return committed versions, sorted by store, name and number."""
    page_key = cursor.decode_cursor(AdapterPageKey, after)
    if project is not None and not principal.can_access(project):
        return Page(items=[], next=None)
    after_key = None if page_key is None else (page_key.store, page_key.name, page_key.version)
    with service.database.read() as session:
        records = adapters.list_page(
            session,
            project=project or principal.project,
            name=name,
            after=after_key,
            limit=limit + 1,
        )
    return make_page(AdapterResponse, AdapterPageKey, records, limit)


@router.get(
    "/{name}",
    responses=describe_problems(404),
    openapi_extra=requires_scope("viewer"),
)
def get_name(
    principal: CurrentPrincipal,
    service: ServiceDep,
    name: NamePath,
    store: StoreQuery = None,
) -> AdapterNameResponse:
    """Return the current version of a name in its store, and all its versions."""
    with service.database.read() as session:
        versions = _find_versions(session, principal, name, store)
        current = adapters.get_pointer(session, versions[0].store, name)
    is_visible = current is not None and any(
        adapter.version == current.version for adapter in versions
    )
    return AdapterNameResponse(
        store=versions[0].store,
        name=name,
        current=PointerResponse.model_validate(current) if is_visible else None,
        versions=[AdapterResponse.model_validate(adapter) for adapter in versions],
    )


@router.get(
    "/{name}/{version:int}",
    responses=describe_problems(404),
    openapi_extra=requires_scope("viewer"),
)
def get_version(
    principal: CurrentPrincipal,
    service: ServiceDep,
    name: NamePath,
    version: VersionPath,
    store: StoreQuery = None,
) -> AdapterDetailResponse:
    """Return one version with its manifest, and what can serve it."""
    with service.database.read() as session:
        versions = _find_versions(session, principal, name, store)
    adapter = next((candidate for candidate in versions if candidate.version == version), None)
    if adapter is None:
        raise UnknownItem("adapter", f"{name}@v{version}")
    detail = AdapterDetailResponse.model_validate(adapter)
    return detail.model_copy(update={"served_by": _list_servers(adapter)})


@router.post(
    "/{name}/promote",
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def promote(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    name: NamePath,
    body: PromoteAdapterRequest,
    store: StoreQuery = None,
) -> PointerResponse:
    """Make this version the current one. Promoting the current version changes nothing."""
    versions = _find_movable_versions(service, principal, name, store)
    if all(adapter.version != body.version for adapter in versions):
        raise UnknownItem("adapter", f"{name}@v{body.version}")
    return _move_pointer(
        service,
        versions[0],
        partial(record_pointer, actor=actor, action="promote"),
        lambda object_store, min_move: pointer.promote(
            object_store, name, body.version, signer=service.trust.signer, min_move=min_move
        ),
    )


@router.post(
    "/{name}/rollback",
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def rollback(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    name: NamePath,
    store: StoreQuery = None,
) -> PointerResponse:
    """Undo the last promotion that is still in effect."""
    versions = _find_movable_versions(service, principal, name, store)
    return _move_pointer(
        service,
        versions[0],
        partial(record_pointer, actor=actor, action="rollback"),
        lambda object_store, min_move: pointer.rollback(
            object_store, name, signer=service.trust.signer, min_move=min_move
        ),
    )


def _list_servers(adapter: Adapter) -> list[ServingOptionResponse] | None:
    """Return what can serve a version; None if its manifest or its store cannot be read."""
    try:
        # The registry accepted it under the store's policy, perhaps by another release.
        manifest = Manifest.model_validate_json(json.dumps(dict(adapter.manifest)))
        config = read_adapter_config(open_store(adapter.store), manifest)
    except (ValidationError, StoreError) as error:
        log.warning("%s: what can serve it is not known: %s", adapter.label, error)
        return None
    options = list_serving_options(manifest, config)
    return [ServingOptionResponse.model_validate(vars(option)) for option in options]


def _move_pointer(
    service: Service,
    adapter: Adapter,
    record_move: Callable[..., None],
    apply_move: Callable[[ObjectStore, int], Pointer],
) -> PointerResponse:
    """Move the pointer in the store, which is authoritative, and then in the registry.

    `apply_move` gets the store, and the last move that the registry has seen.
    """
    store, name = adapter.store, adapter.name
    with service.database.read() as session:
        known = adapters.get_pointer(session, store, name)
    pointer_file = apply_move(open_store(store), known.move if known else 0)
    number, version = pointer_file.moves[-1].number, pointer_file.version
    moved = AdapterPointer(store=store, name=name, version=version, move=number)
    with service.database.write() as session:
        before = adapters.get_pointer(session, store, name)
        adapters.set_pointer_if_known(session, store, name, version, number)
        record_move(session, project=adapter.project, before=before, after=moved)
    service.wake_deployments()
    return PointerResponse.model_validate(moved)


def _find_versions(
    session: Session, principal: Principal, name: str, store: str | None
) -> list[Adapter]:
    """Return the visible versions of a name in one store. Raise UnknownItem if there are none."""
    versions = adapters.list_page(session, project=principal.project, name=name, limit=None)
    if store is not None:
        versions = [version for version in versions if _is_in_store(version, store.rstrip("/"))]
    stores = sorted({version.store for version in versions})
    if not versions:
        raise UnknownItem("adapter", name)
    if len(stores) > 1:
        problem = f"{name} exists in {len(stores)} stores"
        raise InputError([Fault("store", problem, f"Set it to one of {', '.join(stores)}.")])
    return versions


def _is_in_store(adapter: Adapter, store: str) -> bool:
    """Return whether a URL is that of the adapter's store, or of the one that it is part of."""
    return adapter.store.rstrip("/") in (store, get_project_store(store, adapter.project))


def _find_movable_versions(
    service: Service, principal: Principal, name: str, store: str | None
) -> list[Adapter]:
    """Return the versions of a name whose pointer the caller may move.

    Raise DuplicateKey if another project has versions of the name: its users follow the same
    pointer. Raise UnknownItem if there are no versions.
    """
    with service.database.read() as session:
        own = _find_versions(session, principal, name, store)
        all_versions = adapters.list_page(session, name=name, store=own[0].store, limit=None)
    if len(all_versions) != len(own):
        raise DuplicateKey("name", name)
    return own
