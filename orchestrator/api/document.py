"""The routes of the API, and their OpenAPI document, which needs no service and no database."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import Lifespan

from orchestrator.api import problems
from orchestrator.api.routes import (
    adapters,
    admin,
    audit_trail,
    deployment_routes,
    health,
    job_credentials,
    runs,
    schedules,
    streams,
)

DESCRIPTION = """Submit runs, follow them, and manage the resulting adapters.

Every response that is not a success is a problem document (RFC 9457)."""


def make_routes(lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """Return an app with all routes and error handlers, but without a service."""
    app = FastAPI(
        title="slora", version=version("slora"), description=DESCRIPTION,
        docs_url=None, redoc_url=None,
        lifespan=lifespan,
        # A trailing slash makes another path: a redirect would drop the token.
        redirect_slashes=False,
    )  # fmt: skip
    problems.install_handlers(app)
    for router in (
        health.public_router,
        health.guarded_router,
        # Before the routes of runs, whose last path would match these too.
        streams.router,
        job_credentials.router,
        runs.router,
        adapters.router,
        deployment_routes.router,
        schedules.router,
        admin.router,
        audit_trail.router,
    ):
        app.include_router(router)
    app.openapi = lambda: _get_document(app)  # type: ignore[method-assign]
    return app


def build_document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    return make_routes().openapi()


def _get_document(app: FastAPI) -> dict[str, Any]:
    """Return the document, with problem documents in place of FastAPI's validation errors."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
        )
        components = document["components"]
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        components["schemas"].pop("HTTPValidationError", None)
        components["schemas"].pop("ValidationError", None)
        components["schemas"]["Problem"] = problems.build_schema(components["schemas"])
        app.openapi_schema = document
    return app.openapi_schema
