"""Every error as a problem document (RFC 9457): what, where, the way out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
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
from orchestrator.registry.errors import (
    DatabaseUnreachable,
    DuplicateKey,
    ForbiddenMove,
    LeaseHeld,
    LostUpdate,
    UnknownItem,
    WrongSchema,
)

MEDIA_TYPE = "application/problem+json"
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
"""The first class that fits decides; what is in none of them is an error of ours."""
PRIVATE_ERRORS = {
    DatabaseUnreachable: "The service's database does not answer.",
    WrongSchema: "The service's database is of another version.",
}
"""Errors that name what is nobody's business outside."""

log = logging.getLogger(__name__)


class ProblemError(BaseModel):
    """One thing wrong with what was sent."""

    key: str
    problem: str
    remedy: str


class ProblemResponse(BaseModel):
    """An error."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Entity",
                    "status": 422,
                    "detail": "1 fault in what was sent.",
                    "faults": [
                        {
                            "where": "cluster",
                            "problem": "there is no cluster 'mars'",
                            "remedy": "Use default.",
                        }
                    ],
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[ProblemError] = Field(default_factory=list)


def make_problem(
    status: int,
    detail: str,
    *,
    faults: Iterable[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer. What of it others wrote can't be obeyed by a terminal."""
    errors = [
        {
            "where": escape_control(fault.key),
            "problem": escape_control(fault.problem),
            "remedy": escape_control(fault.remedy),
        }
        for fault in list(faults)[:MAX_FAULTS]
    ]
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": escape_control(detail),
        "faults": errors,
    }
    retry_header = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return JSONResponse(body, status, {**retry_header, **(headers or {})}, MEDIA_TYPE)


def build_schema(schemas: dict[str, Any]) -> dict[str, Any]:
    """Of a problem, its parts added to `schemas`."""
    problem_schema = ProblemResponse.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem_schema.pop("$defs"))
    return problem_schema


def describe_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: these statuses, and those that any route may answer."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    all_statuses = sorted({*statuses, 400, 401, 403, 413, 422, 503})
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in all_statuses
    }


def install_handlers(app: FastAPI) -> None:
    """Lets the app answer every error in this form."""
    app.add_exception_handler(JobsError, _handle_jobs_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_error)
    app.add_exception_handler(Exception, _handle_unexpected_error)


async def _handle_jobs_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, JobsError)
    status = next((code for kind, code in STATUS_BY_ERROR.items() if isinstance(error, kind)), 500)
    if isinstance(error, InputError):
        count = len(error.faults)
        detail = f"{count} fault{'s' if count != 1 else ''} in what was sent."
        return make_problem(status, detail, faults=error.faults)
    if status >= 500:
        log.warning("%s", escape_control(str(error)).replace("\n", " "))
    public_detail = next(
        (text for kind, text in PRIVATE_ERRORS.items() if isinstance(error, kind)), None
    )
    if status == 500:
        public_detail = "The service could not do it. Its log says why."
    return make_problem(status, public_detail or str(error))


async def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [
        Fault(".".join(map(str, item["loc"][1:])) or str(item["loc"][0]), item["msg"][:300])
        for item in error.errors()
    ]
    count = len(faults)
    detail = f"{count} fault{'s' if count != 1 else ''} in what was sent."
    return make_problem(422, detail, faults=faults)


async def _handle_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = {404: "There is nothing here. See /openapi.json.", 405: "Not by this method."}.get(
            error.status_code, detail
        )
    headers = error.headers
    if error.status_code == 405 and (methods := _list_methods(request)):
        headers = {"Allow": ", ".join(methods)}
    return make_problem(error.status_code, detail, headers=headers)


def _list_methods(request: Request) -> list[str]:
    """What the path allows: Starlette tells the methods of one route that fits alone."""
    paths: dict[str, Any] = request.app.openapi()["paths"]
    matching = [path for path in paths if compile_path(path)[0].match(request.url.path)]
    # /check is no run: the more of a path is spelled out, the more it is meant.
    template = min(matching, key=lambda path: path.count("{"), default="")
    return sorted(method.upper() for method in paths.get(template, ()))


async def _handle_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    return make_problem(500, "The service met what nobody foresaw. Its log says what.")
