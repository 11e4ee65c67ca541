"""Routes of runs: submit, check, list, show, stop, delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field
from pydantic_core import to_json
from sqlalchemy import Row
from sqlalchemy.orm import Session

from jobs.errors import InputError, NotInStore, StoreRefused, StoreUnreachable
from jobs.spec.kinds import Kind
from jobs.store.open import open_store
from jobs.store.runs.journal import parse_events
from jobs.store.runs.run_store import EVENTS, SPEC, format_run_key
from jobs.train.monitor.phases import RunStart, collect_starts
from orchestrator.api import cursor
from orchestrator.api.auth import AuthenticatedRoute, CurrentPrincipal, requires_scope
from orchestrator.api.cursor import Cursor, Limit, PageKey, encode_cursor
from orchestrator.api.deps import CurrentActor, ServiceDep, get_visible_run, make_submission
from orchestrator.api.parameters import NameQuery, RunPath
from orchestrator.api.problems import describe_problems
from orchestrator.control.intake import record_stop
from orchestrator.control.job_spec import SPEC_FILES
from orchestrator.control.retention.run_removal import check_removable, remove_run
from orchestrator.control.supervisor import Service
from orchestrator.registry import run_flags, runs
from orchestrator.registry.errors import LostUpdate
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.run_request import read_request
from orchestrator.registry.values import Run
from orchestrator.schemas.base import Page
from orchestrator.schemas.runs import (
    AttemptResponse,
    CheckResponse,
    DeletedRunResponse,
    RunDetailResponse,
    RunResponse,
    StartResponse,
    StartsResponse,
    SubmitRunRequest,
)

MAX_START_BYTES = 1 << 20
"""Bytes of a run's events that are read for its starts: some thousand events."""
MAX_TRIES = 5
"""Tries of a change that may collide with the reconciler's."""

Result = TypeVar("Result")
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=128,
        pattern=r"^[!-~]+$",
        description="Any text. The same key within a week returns the same run.",
    ),
]

_RESPONSE_FIELDS = frozenset(RunResponse.model_fields)

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=AuthenticatedRoute)


class RunPageKey(PageKey):
    """Key of a run in the list, which is sorted by creation, the newest first."""

    created_at: float
    id: str = Field(max_length=128, pattern=r"^[!-~]+$")


@router.post(
    "",
    status_code=201,
    responses={
        200: {"model": RunResponse, "description": "The run of an earlier request with this key"},
        **describe_problems(404, 409),
    },
    openapi_extra=requires_scope("submitter"),
)
def submit_run(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    body: SubmitRunRequest,
    response: Response,
    key: IdempotencyKey = None,
) -> RunResponse:
    """Submit a run. With an Idempotency-Key that has a run already, return it with status 200."""
    submission = make_submission(service, principal, body)
    run, is_new = service.intake.accept(submission, key=key, actor=actor)
    if is_new:
        service.wake(run.cluster)
    else:
        response.status_code = 200
    return RunResponse.model_validate(run)


@router.post(
    "/check",
    responses=describe_problems(404),
    openapi_extra=requires_scope("submitter"),
)
def check_run(
    principal: CurrentPrincipal,
    service: ServiceDep,
    body: SubmitRunRequest,
) -> CheckResponse:
    """Validate a submission without writing anything; report all its errors."""
    checked = service.intake.resolve(make_submission(service, principal, body))
    return CheckResponse.model_validate(checked)


@router.get(
    "",
    response_model=Page[RunResponse],
    responses=describe_problems(),
    openapi_extra=requires_scope("viewer"),
)
async def list_runs(
    request: Request,
    principal: CurrentPrincipal,
    service: ServiceDep,
    project: NameQuery = None,
    status: Annotated[Status | None, Query()] = None,
    name: NameQuery = None,
    kind: Annotated[Kind | None, Query()] = None,
    limit: Limit = cursor.PAGE_SIZE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Response:
    """Return runs, the newest first."""
    page_key = cursor.decode_cursor(RunPageKey, after)
    if project is not None and not principal.can_access(project):
        return _render_page([], None)
    filters = {
        "project": project or principal.project,
        "status": status,
        "name": name,
        "kind": kind,
    }
    read_page = partial(_read_page, service, filters, page_key, limit)
    return await to_thread.run_sync(read_page, limiter=request.app.state.readers)


def _read_page(
    service: Service, filters: dict[str, str | None], page_key: RunPageKey | None, limit: int
) -> Response:
    after = None if page_key is None else (page_key.created_at, page_key.id)
    with service.database.read() as session:
        rows = runs.select_rows(session, filters, after=after, limit=limit + 1)
    last = rows[limit - 1] if len(rows) > limit else None
    next_cursor = (
        None if last is None else encode_cursor(RunPageKey(created_at=last.created_at, id=last.id))
    )
    return _render_page([_select_fields(row) for row in rows[:limit]], next_cursor)


def _select_fields(row: Row[Any]) -> dict[str, Any]:
    """Return the fields of a response, unvalidated: the registry's columns have these types."""
    return {name: value for name, value in row._mapping.items() if name in _RESPONSE_FIELDS}


def _render_page(items: Sequence[dict[str, Any]], next_cursor: str | None) -> Response:
    """Serialize a page without FastAPI's validation, which is a third of the cost of a page."""
    page = to_json({"items": items, "next": next_cursor}, inf_nan_mode="null")
    return Response(page, media_type="application/json")


@router.get(
    "/{run}",
    responses=describe_problems(404),
    openapi_extra=requires_scope("viewer"),
)
def get_run(
    principal: CurrentPrincipal,
    service: ServiceDep,
    run: RunPath,
) -> RunDetailResponse:
    """Return a run with its attempts."""
    with service.database.read() as session:
        stored = get_visible_run(session, principal, run)
        attempts = runs.list_attempts(session, run)
    detail = RunResponse.model_validate(stored).model_dump()
    return RunDetailResponse(
        **detail, attempts=[AttemptResponse.model_validate(attempt) for attempt in attempts]
    )


@router.get(
    "/{run}/spec",
    response_class=Response,
    responses={200: {"content": {"application/yaml": {}}}, **describe_problems(404, 409)},
    openapi_extra=requires_scope("viewer"),
)
def get_spec(
    principal: CurrentPrincipal,
    service: ServiceDep,
    run: RunPath,
) -> Response:
    """Return the spec that the run's job reads."""
    with service.database.read() as session:
        stored = get_visible_run(session, principal, run)
    return Response(_read_spec(stored), media_type="application/yaml")


@router.get(
    "/{run}/starts",
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("viewer"),
)
def get_starts(
    principal: CurrentPrincipal,
    service: ServiceDep,
    run: RunPath,
) -> StartsResponse:
    """Return the phases of the run's starts, from submission to first step, by its events.

    There are none while its store does not answer.
    """
    with service.database.read() as session:
        stored = get_visible_run(session, principal, run)
    starts = [StartResponse.model_validate(start.to_json()) for start in read_starts(stored)]
    return StartsResponse(starts=starts)


@router.post(
    "/{run}/stop",
    status_code=202,
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("submitter"),
)
def stop_run(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    run: RunPath,
) -> RunResponse:
    """Request the end of a run. A run that has ended stays as it is."""

    def request_stop(session: Session) -> Run:
        running = get_visible_run(session, principal, run)
        stopping = run_flags.request_stop(session, running)
        record_stop(session, actor, running, stopping)
        return stopping

    stopping = _retry_lost_updates(service, request_stop)
    service.wake(stopping.cluster)
    return RunResponse.model_validate(stopping)


@router.delete(
    "/{run}",
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("admin"),
)
def delete_run(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    run: RunPath,
) -> DeletedRunResponse:
    """Delete a run that has ended, with its events and its files; a committed adapter stays."""
    with service.database.read() as session:
        stored = get_visible_run(session, principal, run)
    check_removable(service.database, stored)
    removed = remove_run(
        service.database,
        stored,
        instance=service.instance,
        store_opener=open_store,
        actor=actor,
    )
    return DeletedRunResponse.model_validate(removed)


def _retry_lost_updates(service: Service, change: Callable[[Session], Result]) -> Result:
    for _ in range(MAX_TRIES - 1):
        try:
            with service.database.write() as session:
                return change(session)
        except LostUpdate:
            continue
    with service.database.write() as session:
        return change(session)


def read_starts(run: Run) -> list[RunStart]:
    """Read the starts from the first part of the run's events, which anybody may have written."""
    try:
        data = open_store(run.store).read(format_run_key(run.id, EVENTS), 0, MAX_START_BYTES)
    except (NotInStore, StoreRefused, StoreUnreachable):
        return []
    return collect_starts(parse_events(data, 0)[0])


def _read_spec(run: Run) -> bytes:
    store = open_store(run.store)
    try:
        return read_request(store, run.id).spec_text.encode()
    except NotInStore:
        # The run was not submitted through the API, so only its job has written the spec.
        return store.get(format_run_key(run.id, SPEC_FILES.get(run.kind, SPEC)))
    except InputError as error:
        raise NotInStore(f"The spec of run {run.id}") from error
