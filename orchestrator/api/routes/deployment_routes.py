"""Routes of deployments: deploy an adapter, list, show, roll back, remove."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from jobs.errors import Fault, InputError
from jobs.store.adapters.manifest import Name
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.api import cursor
from orchestrator.api.auth import AuthenticatedRoute, CurrentPrincipal, Principal, requires_scope
from orchestrator.api.cursor import Cursor, Limit, PageKey, make_page
from orchestrator.api.deps import CurrentActor, ServiceDep, resolve_project
from orchestrator.api.parameters import NamePath, NameQuery, StoreQuery
from orchestrator.api.problems import describe_problems
from orchestrator.control.supervisor import Service
from orchestrator.deployments import deployment_acts
from orchestrator.deployments.deployment_acts import DeploymentWish
from orchestrator.deployments.deployment_follower import record_act
from orchestrator.deployments.deployment_record import (
    DeploymentRecord,
    get_deployment_key,
    list_deployments,
    read_deployment,
)
from orchestrator.deployments.describe_record import describe_deployment, describe_record
from orchestrator.deployments.open_target import find_endpoint, open_target
from orchestrator.deployments.serving_target import ServingTarget
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.tenancy.project_store import get_project_store, match_project_store
from orchestrator.schemas.base import Page
from orchestrator.schemas.deployment_schemas import (
    CreateDeploymentRequest,
    DeploymentDetailResponse,
    DeploymentResponse,
)

router = APIRouter(prefix="/v1/deployments", tags=["deployments"], route_class=AuthenticatedRoute)


class DeploymentPageKey(PageKey):
    """Key of a deployment in the list, which is sorted by store and name."""

    store: str = Field(max_length=4096, pattern=r"^[^\x00-\x1f]*$")
    name: Name


@router.get(
    "",
    responses=describe_problems(404),
    openapi_extra=requires_scope("viewer"),
)
def list_all(
    principal: CurrentPrincipal,
    service: ServiceDep,
    project: NameQuery = None,
    limit: Limit = cursor.PAGE_SIZE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Page[DeploymentResponse]:
    """Return the deployments of a project, sorted by store and name."""
    page_key = cursor.decode_cursor(DeploymentPageKey, after)
    if project is not None and not principal.can_access(project):
        return Page(items=[], next=None)
    owner = resolve_project(service, principal, project)
    after_key = ("", "") if page_key is None else (page_key.store, page_key.name)
    records: list[DeploymentResponse] = []
    for url in sorted(get_project_store(store, owner) for store in service.config.stores):
        store = open_store(url)
        for name in list_deployments(store):
            if (url, name) > after_key and len(records) <= limit:
                values = describe_deployment(store, name)
                records.append(DeploymentResponse.model_validate(values))
    return make_page(DeploymentResponse, DeploymentPageKey, records, limit)


@router.post(
    "",
    status_code=201,
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def create_deployment(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    body: CreateDeploymentRequest,
) -> DeploymentDetailResponse:
    """Deploy an adapter, or change its deployment, if the server can serve the adapter.

    The service then carries out the rollout; the deployment tells how far it is.
    """
    project = resolve_project(service, principal, body.project)
    store = open_store(_choose_store(service, project, body.store))
    name = body.name or body.adapter
    wish = DeploymentWish(name, body.adapter, body.version, body.endpoint, body.canary)
    with _open_endpoint(service, project, body.endpoint) as target:
        record = deployment_acts.deploy(store, target, wish, by=actor.label or "")
    record_act(service.database, actor, store, project, record, "deploy")
    service.wake_deployments()
    return _respond(store, record)


@router.get(
    "/{name}",
    responses=describe_problems(404),
    openapi_extra=requires_scope("viewer"),
)
def get_deployment(
    principal: CurrentPrincipal,
    service: ServiceDep,
    name: NamePath,
    project: NameQuery = None,
    store: StoreQuery = None,
) -> DeploymentDetailResponse:
    """Return one deployment with its history."""
    _, object_store = _find_deployment(service, principal, project, name, store)
    return _respond(object_store, read_deployment(object_store, name)[0])


@router.post(
    "/{name}/rollback",
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def rollback_deployment(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    name: NamePath,
    project: NameQuery = None,
    store: StoreQuery = None,
) -> DeploymentDetailResponse:
    """Answer with the version before, at once. What the pointer names now is not tried again."""
    owner, object_store = _find_deployment(service, principal, project, name, store)
    endpoint = read_deployment(object_store, name)[0].endpoint
    with _open_endpoint(service, owner, endpoint) as target:
        record = deployment_acts.rollback(object_store, target, name, by=actor.label or "")
    record_act(service.database, actor, object_store, owner, record, "rollback")
    service.wake_deployments()
    return _respond(object_store, record)


@router.delete(
    "/{name}",
    status_code=202,
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def remove_deployment(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    name: NamePath,
    project: NameQuery = None,
    store: StoreQuery = None,
) -> DeploymentDetailResponse:
    """Let the service take the name and its versions from the server, and delete the deployment."""
    owner, object_store = _find_deployment(service, principal, project, name, store)
    record = deployment_acts.remove(object_store, name, by=actor.label or "")
    record_act(service.database, actor, object_store, owner, record, "remove")
    service.wake_deployments()
    return _respond(object_store, record)


def _respond(store: ObjectStore, record: DeploymentRecord) -> DeploymentDetailResponse:
    return DeploymentDetailResponse.model_validate(describe_record(store, record, detail=True))


@contextmanager
def _open_endpoint(service: Service, project: str, endpoint: str) -> Iterator[ServingTarget]:
    """Open an endpoint of a project. Raise InputError if it has no such endpoint."""
    config = find_endpoint(service.config.serving, endpoint, allow_url=False, project=project)
    target = open_target(endpoint, config)
    try:
        yield target
    finally:
        target.close()


def _choose_store(service: Service, project: str, url: str | None) -> str:
    """Return the project's part of a configured store, or of the first one."""
    stores = service.config.stores
    store = stores[0] if url is None else match_project_store(url.rstrip("/"), stores, project)
    if store is None:
        problem = f"{url!a} is no store of this service"
        raise InputError([Fault("store", problem, f"Use one of {', '.join(stores)}.")])
    return get_project_store(store, project)


def _find_deployment(
    service: Service, principal: Principal, project: str | None, name: str, url: str | None
) -> tuple[str, ObjectStore]:
    """Return the project and the store of a deployment. Raise UnknownItem if there is none."""
    if project is not None and not principal.can_access(project):
        raise UnknownItem("deployment", name)
    owner = resolve_project(service, principal, project)
    urls = (
        [get_project_store(store, owner) for store in service.config.stores]
        if url is None
        else [_choose_store(service, owner, url)]
    )
    stores = [store for store in map(open_store, urls) if store.head(get_deployment_key(name))]
    if not stores:
        raise UnknownItem("deployment", name)
    if len(stores) > 1:
        problem = f"{name} exists in {len(stores)} stores"
        raise InputError([Fault("store", problem, f"Set it to one of {', '.join(urls)}.")])
    return owner, stores[0]
