"""Routes of runs: submit, check, list, show, stop."""

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

from jobs.errors import Fault, NotFound
from jobs.store.objects import open_store
from jobs.store.runs import SPEC
from orchestrator.api import cursor
from orchestrator.api.access import Asker, Guarded, needs
from orchestrator.api.answers import AttemptAnswer, Checked, Page, RunAnswer, RunDetail
from orchestrator.api.cursor import Cursor, Limit, Place, written
from orchestrator.api.given import AskedRun, NameQuery, RunPath
from orchestrator.api.parts import Behind, submission, visible_run
from orchestrator.api.problems import documented
from orchestrator.registry import marks, runs
from orchestrator.registry.errors import LostUpdate
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.request_paper import REQUEST, read_request
from orchestrator.registry.values import Kind, Run
from orchestrator.service.loop import Service
from orchestrator.service.papers import PARTS, paper_key

ROUNDS = 5
"""Tries of a change that the reconciler's own may overtake."""

Answer = TypeVar("Answer")
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=128,
        pattern=r"^[!-~]+$",
        description="Any text of your own: the same again within a week is the same run.",
    ),
]

_ANSWERED = frozenset(RunAnswer.model_fields)

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=Guarded)


class RunPlace(Place):
    """A run among all, the newest first."""

    created_at: float
    id: str = Field(max_length=128, pattern=r"^[!-~]+$")


@router.post(
    "",
    status_code=201,
    response_model=RunAnswer,
    responses={200: {"model": RunAnswer, "description": "The key's run"}, **documented(404, 409)},
    openapi_extra=needs("submitter"),
)
def submit(
    who: Asker,
    service: Behind,
    asked: AskedRun,
    response: Response,
    key: Key = None,
) -> RunAnswer:
    """Submit a run. Whoever is answered has one; 200 where the key was given it before."""
    run, new = service.intake.accept(submission(service, who, asked), key=key)
    if new:
        service.wake(run.cluster)
    else:
        response.status_code = 200
    return RunAnswer.model_validate(run)


@router.post(
    "/check",
    response_model=Checked,
    responses=documented(404),
    openapi_extra=needs("submitter"),
)
def check(
    who: Asker,
    service: Behind,
    asked: AskedRun,
) -> Checked:
    """What a submission would be, with all its faults; nothing is written."""
    found = service.intake.check(submission(service, who, asked))
    return Checked.model_validate(found)


@router.get(
    "", response_model=Page[RunAnswer], responses=documented(), openapi_extra=needs("viewer")
)
async def listed(
    request: Request,
    who: Asker,
    service: Behind,
    project: NameQuery = None,
    status: Annotated[Status | None, Query()] = None,
    name: NameQuery = None,
    kind: Annotated[Kind | None, Query()] = None,
    limit: Limit = cursor.PAGE,
    after: Annotated[Cursor, Query(alias="cursor")] = None,
) -> Response:
    """Runs, the newest first."""
    place = cursor.read(RunPlace, after)
    if project is not None and not who.sees(project):
        return _json([], None)
    filters = {"project": project or who.project, "status": status, "name": name, "kind": kind}
    look = partial(_page, service, filters, place, limit)
    return await to_thread.run_sync(look, limiter=request.app.state.readers)


def _page(
    service: Service, filters: dict[str, str | None], place: RunPlace | None, limit: int
) -> Response:
    with service.database.read() as session:
        found = runs.rows(session, filters, after=place, limit=limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    follows = None if last is None else written(RunPlace(created_at=last.created_at, id=last.id))
    return _json([_shown(row) for row in found[:limit]], follows)


def _shown(row: Row[Any]) -> dict[str, Any]:
    """A run as its answer has it; not checked: what the registry holds, it holds in its types."""
    return {name: value for name, value in row._mapping.items() if name in _ANSWERED}


def _json(items: Sequence[dict[str, Any]], follows: str | None) -> Response:
    """Written here: FastAPI would check all of it, which is a third of what a page costs."""
    page = to_json({"items": items, "next": follows}, inf_nan_mode="null")
    return Response(page, media_type="application/json")


@router.get(
    "/{run}", response_model=RunDetail, responses=documented(404), openapi_extra=needs("viewer")
)
def show(
    who: Asker,
    service: Behind,
    run: RunPath,
) -> RunDetail:
    """One run, with its attempts."""
    with service.database.read() as session:
        found = visible_run(session, who, run)
        tries = runs.attempts(session, run)
    detail = RunAnswer.model_validate(found).model_dump()
    return RunDetail(**detail, attempts=[AttemptAnswer.model_validate(one) for one in tries])


@router.get(
    "/{run}/spec",
    response_class=Response,
    responses={200: {"content": {"application/yaml": {}}}, **documented(404, 409)},
    openapi_extra=needs("viewer"),
)
def spec(
    who: Asker,
    service: Behind,
    run: RunPath,
) -> Response:
    """The spec that the run's job reads."""
    with service.database.read() as session:
        found = visible_run(session, who, run)
    return Response(_paper(found), media_type="application/yaml")


@router.post(
    "/{run}/stop",
    status_code=202,
    response_model=RunAnswer,
    responses=documented(404, 409),
    openapi_extra=needs("submitter"),
)
def stop(
    who: Asker,
    service: Behind,
    run: RunPath,
) -> RunAnswer:
    """Ask the run to end; one that is over stays as it is."""

    def asked(session: Session) -> Run:
        return marks.ask_stop(session, visible_run(session, who, run))

    stopping = _again(service, asked)
    service.wake(stopping.cluster)
    return RunAnswer.model_validate(stopping)


def _again(service: Service, change: Callable[[Session], Answer]) -> Answer:
    for _ in range(ROUNDS - 1):
        try:
            with service.database.write() as session:
                return change(session)
        except LostUpdate:
            continue
    with service.database.write() as session:
        return change(session)


def _paper(run: Run) -> bytes:
    store = open_store(run.store)
    try:
        asked = read_request(store, paper_key(run.id, REQUEST))
    except NotFound:
        # It never came by this door: the store tells of it what its job wrote.
        return store.get(paper_key(run.id, PARTS.get(run.kind, SPEC)))
    if isinstance(asked, Fault):
        raise NotFound(f"The spec of run {run.id}")
    return asked.text.encode()
