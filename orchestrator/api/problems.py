"""Problem documents (RFC 9457) for all errors of the API."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from jobs.errors import (
    AlreadyExists,
    Fault,
    InputError,
    JobsError,
    NotInStore,
    StoreError,
    StoreRefused,
    StoreUnreachable,
    Unreachable,
    UnsupportedStore,
    WriteConflict,
)
from jobs.train.monitor.event_text import escape_control
from orchestrator.api.request_ids import HEADER, get_request_id
from orchestrator.deployments.errors import NoEarlierVersion, TargetRefused
from orchestrator.registry.errors import (
    DatabaseUnreachable,
    DuplicateKey,
    ForbiddenMove,
    LeaseHeld,
    LostUpdate,
    RunInUse,
    UnknownItem,
    WrongSchema,
)
from orchestrator.schemas.problems import MEDIA_TYPE, ProblemError, ProblemResponse

RETRY_AFTER_S = 2
MAX_FAULTS = 100

STATUS_BY_ERROR: Mapping[type[JobsError], int] = {
    InputError: 422,
    UnknownItem: 404,
    NotInStore: 404,
    DuplicateKey: 409,
    LostUpdate: 409,
    LeaseHeld: 409,
    ForbiddenMove: 409,
    RunInUse: 409,
    TargetRefused: 409,
    NoEarlierVersion: 409,
    AlreadyExists: 409,
    WriteConflict: 409,
    StoreRefused: 503,
    StoreUnreachable: 503,
    UnsupportedStore: 503,
    Unreachable: 503,
    DatabaseUnreachable: 503,
    WrongSchema: 503,
    StoreError: 409,
}
"""The first matching class decides; any other error is a bug, with status 500."""
PRIVATE_ERRORS = {
    DatabaseUnreachable: "The service's database does not answer.",
    WrongSchema: "The service's database has an unsupported schema version.",
}
"""Errors whose own text contains internal details."""

log = logging.getLogger(__name__)


def make_problem(
    status: int,
    detail: str,
    *,
    faults: Iterable[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return a problem document, with terminal control characters escaped."""
    body = ProblemResponse(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=escape_control(detail),
        request_id=get_request_id(),
        errors=[
            ProblemError(
                key=escape_control(fault.key),
                problem=escape_control(fault.problem),
                remedy=escape_control(fault.remedy),
            )
            for fault in list(faults)[:MAX_FAULTS]
        ],
    )
    retry_header = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return JSONResponse(body.model_dump(), status, {**retry_header, **(headers or {})}, MEDIA_TYPE)


def build_schema(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a problem; add the models that it refers to to `schemas`."""
    problem_schema = ProblemResponse.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem_schema.pop("$defs"))
    return problem_schema


def describe_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the problem responses of a route: these, and those that any route may have."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    all_statuses = sorted({*statuses, 400, 401, 403, 408, 413, 422, 429, 503})
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in all_statuses
    }


def install_handlers(app: FastAPI) -> None:
    """Make the app respond to every error with a problem document."""
    app.add_exception_handler(JobsError, _handle_jobs_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_error)
    app.add_exception_handler(Exception, _handle_unexpected_error)


async def _handle_jobs_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, JobsError)
    status = next((code for kind, code in STATUS_BY_ERROR.items() if isinstance(error, kind)), 500)
    if isinstance(error, InputError):
        return _make_invalid_request(error.faults)
    if status >= 500:
        log.warning("%s", escape_control(str(error)).replace("\n", " "))
    public_detail = next(
        (text for kind, text in PRIVATE_ERRORS.items() if isinstance(error, kind)), None
    )
    if status == 500:
        public_detail = f"The service failed to handle the request. {_point_to_log()}"
    return make_problem(status, public_detail or str(error))


async def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [
        Fault(".".join(map(str, item["loc"][1:])) or str(item["loc"][0]), item["msg"][:300])
        for item in error.errors()
    ]
    return _make_invalid_request(faults)


def _make_invalid_request(faults: Sequence[Fault]) -> JSONResponse:
    count = len(faults)
    detail = f"The request has {count} error{'s' if count != 1 else ''}."
    return make_problem(422, detail, faults=faults)


async def _handle_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = {
            404: "There is no such route. See /openapi.json.",
            405: "This route does not support this method.",
        }.get(error.status_code, detail)
    headers = error.headers
    if error.status_code == 405 and (methods := _list_methods(request)):
        headers = {"Allow": ", ".join(methods)}
    return make_problem(error.status_code, detail, headers=headers)


def _list_methods(request: Request) -> list[str]:
    """Return the methods that the path allows: Starlette knows only those of one matching route."""
    paths: dict[str, Any] = request.app.openapi()["paths"]
    matching = [path for path in paths if compile_path(path)[0].match(request.url.path)]
    # /check is not a run: the route with the fewest parameters takes precedence.
    template = min(matching, key=lambda path: path.count("{"), default="")
    return sorted(method.upper() for method in paths.get(template, ()))


async def _handle_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    # This answer does not pass through the middleware that adds the header.
    headers = {HEADER: get_request_id() or ""}
    detail = f"The service failed unexpectedly. {_point_to_log()}"
    return make_problem(500, detail, headers=headers)


def _point_to_log() -> str:
    return f"See the log of the service for request {get_request_id()}."
