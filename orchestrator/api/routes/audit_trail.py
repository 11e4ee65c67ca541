"""The route of the audit log: who changed what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from orchestrator.api import cursor
from orchestrator.api.auth import AuthenticatedRoute, CurrentPrincipal, requires_scope
from orchestrator.api.cursor import Cursor, Limit, PageKey, make_page
from orchestrator.api.deps import ServiceDep
from orchestrator.api.parameters import NameQuery
from orchestrator.api.problems import describe_problems
from orchestrator.registry.tenancy import audit_log
from orchestrator.schemas.audit_entries import AuditEntryResponse
from orchestrator.schemas.base import Page

MAX_TIME = 10.0**12

WordQuery = Annotated[str | None, Query(pattern=r"^[a-z_]+$", max_length=32)]
ObjectQuery = Annotated[str | None, Query(pattern=r"^[ -~]+$", max_length=1024)]
TokenQuery = Annotated[str | None, Query(pattern=r"^[0-9a-f]{16}$")]
TimeQuery = Annotated[
    float | None,
    Query(ge=0, le=MAX_TIME, allow_inf_nan=False, description="Seconds since 1970."),
]

router = APIRouter(prefix="/v1/audit", tags=["service"], route_class=AuthenticatedRoute)


class AuditPageKey(PageKey):
    """Key of an entry in the list, which is sorted by id, the newest first."""

    id: int = Field(ge=1, lt=2**63)


@router.get(
    "",
    responses=describe_problems(),
    openapi_extra=requires_scope("admin"),
)
def list_audit(
    principal: CurrentPrincipal,
    service: ServiceDep,
    project: NameQuery = None,
    action: WordQuery = None,
    kind: WordQuery = None,
    object: ObjectQuery = None,
    token: TokenQuery = None,
    since: TimeQuery = None,
    until: TimeQuery = None,
    limit: Limit = cursor.PAGE_SIZE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Page[AuditEntryResponse]:
    """Return changes, the newest first: of the token's project, or all of them."""
    page_key = cursor.decode_cursor(AuditPageKey, after)
    if project is not None and not principal.can_access(project):
        return Page(items=[], next=None)
    with service.database.read() as session:
        entries = audit_log.list_entries(
            session,
            project=project or principal.project,
            action=action,
            object_kind=kind,
            object=object,
            token=token,
            since=since,
            until=until,
            after=None if page_key is None else page_key.id,
            limit=limit + 1,
        )
    return make_page(AuditEntryResponse, AuditPageKey, entries, limit)
