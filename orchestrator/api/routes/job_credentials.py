"""The route by which a running job renews its project's credentials; boto3 asks it by itself.

It is not part of the documented API: it takes the token of a run's attempt, which only its job has,
and no token of a person. The answer has the form that boto3 expects of a container's credentials.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, Field

from orchestrator.api.deps import ServiceDep
from orchestrator.control.projects.run_tokens import PREFIX, check_run_token
from orchestrator.control.supervisor import Service
from orchestrator.registry import runs
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.values import Run

ACTIVE = (Status.SUBMITTED, Status.RUNNING, Status.PUBLISHING)

_AUTHORIZATION = re.compile(rf"Bearer ({PREFIX}\.([1-9][0-9]{{0,8}})\.[0-9a-f]{{64}})")

router = APIRouter(include_in_schema=False)


class JobCredentials(BaseModel):
    """Credentials in the form of a container's credentials endpoint of AWS."""

    key_id: str = Field(serialization_alias="AccessKeyId", repr=False)
    secret: str = Field(serialization_alias="SecretAccessKey", repr=False)
    token: str | None = Field(serialization_alias="Token", repr=False)
    expiration: str = Field(serialization_alias="Expiration")


@router.get("/v1/runs/{run}/credentials", response_model=JobCredentials)
def get_credentials(
    run: str, request: Request, response: Response, service: ServiceDep
) -> JobCredentials:
    """Return the credentials of the run's project to the job of its newest attempt."""
    project = _authorize(service, request, run).project
    session = service.credentials.get_session(project)
    # A key that does not expire is asked for again too, so that its file may be changed.
    seconds = service.credentials.get_session_seconds(project)
    expires_at = session.expires_at or time.time() + seconds
    response.headers["Cache-Control"] = "no-store"
    return JobCredentials(
        key_id=session.key_id,
        secret=session.secret,
        token=session.token or None,
        expiration=datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _authorize(service: Service, request: Request, run_id: str) -> Run:
    """Return the active run whose newest attempt has the request's token. Raise HTTPException."""
    headers = request.headers.getlist("authorization")
    match = _AUTHORIZATION.fullmatch(headers[0]) if len(headers) == 1 else None
    jobs = service.config.jobs
    if jobs is not None and match is not None:
        token, attempt = match[1], int(match[2])
        # Before the database is asked: a stranger costs nothing more than this.
        if check_run_token(jobs, token, run_id, attempt):
            run = _find_run(service, run_id)
            if run is not None and run.attempt == attempt and run.status in ACTIVE:
                return run
    detail = "This route is for the job of a run's newest attempt, with its token."
    raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _find_run(service: Service, run_id: str) -> Run | None:
    try:
        with service.database.read() as session:
            return runs.get(session, run_id)
    except UnknownItem:
        return None
