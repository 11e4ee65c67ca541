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
    AlreadyThere,
    Changed,
    Fault,
    InputError,
    JobsError,
    NotFound,
    StoreError,
    StoreRefused,
    StoreUnreachable,
    Unreachable,
    UnsoundStore,
)
from jobs.narrate import plain
from orchestrator.registry.errors import (
    DatabaseUnreachable,
    ForbiddenMove,
    Held,
    LostUpdate,
    Taken,
    Unknown,
    WrongSchema,
)

MEDIA = "application/problem+json"
RETRY_AFTER_S = 2
MOST_FAULTS = 100

STATUS: Mapping[type[JobsError], int] = {
    InputError: 422,
    Unknown: 404,
    NotFound: 404,
    Taken: 409,
    LostUpdate: 409,
    Held: 409,
    ForbiddenMove: 409,
    AlreadyThere: 409,
    Changed: 409,
    StoreRefused: 503,
    StoreUnreachable: 503,
    UnsoundStore: 503,
    Unreachable: 503,
    DatabaseUnreachable: 503,
    WrongSchema: 503,
    StoreError: 409,
}
"""The first class that fits decides; what is in none of them is an error of ours."""
PRIVATE = {
    DatabaseUnreachable: "The service's database does not answer.",
    WrongSchema: "The service's database is of another version.",
}
"""Errors that name what is nobody's business outside."""

log = logging.getLogger(__name__)


class FaultAnswer(BaseModel):
    """One thing wrong with what was sent."""

    where: str
    problem: str
    remedy: str


class Problem(BaseModel):
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
    faults: list[FaultAnswer] = Field(default_factory=list)


def problem(
    status: int,
    detail: str,
    *,
    faults: Iterable[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer. What of it others wrote can't be obeyed by a terminal."""
    found = [
        {"where": plain(one.key), "problem": plain(one.problem), "remedy": plain(one.remedy)}
        for one in list(faults)[:MOST_FAULTS]
    ]
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": plain(detail),
        "faults": found,
    }
    again = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return JSONResponse(body, status, {**again, **(headers or {})}, MEDIA)


def schema(schemas: dict[str, Any]) -> dict[str, Any]:
    """Of a problem, its parts added to `schemas`."""
    found = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(found.pop("$defs"))
    return found


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: these statuses, and those that any route may answer."""
    content = {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    every = sorted({*statuses, 400, 401, 403, 413, 422, 503})
    return {one: {"description": HTTPStatus(one).phrase, "content": content} for one in every}


def add_to(app: FastAPI) -> None:
    """Lets the app answer every error in this form."""
    app.add_exception_handler(JobsError, _of_ours)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _of_nobody)


async def _of_ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, JobsError)
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    if isinstance(error, InputError):
        count = len(error.faults)
        detail = f"{count} fault{'s' if count != 1 else ''} in what was sent."
        return problem(status, detail, faults=error.faults)
    if status >= 500:
        log.warning("%s", plain(str(error)).replace("\n", " "))
    hidden = next((words for kind, words in PRIVATE.items() if isinstance(error, kind)), None)
    if status == 500:
        hidden = "The service could not do it. Its log says why."
    return problem(status, hidden or str(error))


async def _of_validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [
        Fault(".".join(map(str, one["loc"][1:])) or str(one["loc"][0]), one["msg"][:300])
        for one in error.errors()
    ]
    count = len(faults)
    detail = f"{count} fault{'s' if count != 1 else ''} in what was sent."
    return problem(422, detail, faults=faults)


async def _of_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = {404: "There is nothing here. See /openapi.json.", 405: "Not by this method."}.get(
            error.status_code, detail
        )
    headers = error.headers
    if error.status_code == 405 and (methods := _methods(request)):
        headers = {"Allow": ", ".join(methods)}
    return problem(error.status_code, detail, headers=headers)


def _methods(request: Request) -> list[str]:
    """What the path allows: Starlette tells the methods of one route that fits alone."""
    paths: dict[str, Any] = request.app.openapi()["paths"]
    fit = [one for one in paths if compile_path(one)[0].match(request.url.path)]
    # /check is no run: the more of a path is spelled out, the more it is meant.
    template = min(fit, key=lambda one: one.count("{"), default="")
    return sorted(method.upper() for method in paths.get(template, ()))


async def _of_nobody(request: Request, error: Exception) -> JSONResponse:
    return problem(500, "The service met what nobody foresaw. Its log says what.")
