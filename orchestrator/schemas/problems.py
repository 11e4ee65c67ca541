"""Problem documents (RFC 9457): the body of every response that is not a success."""

from __future__ import annotations

from pydantic import Field

from orchestrator.schemas.base import ResponseSchema, with_example

MEDIA_TYPE = "application/problem+json"


class ProblemError(ResponseSchema):
    """An error in a request."""

    key: str
    problem: str
    remedy: str


class ProblemResponse(ResponseSchema):
    """A problem, with every error of the request where the request is at fault."""

    model_config = with_example(
        type="about:blank",
        title="Unprocessable Entity",
        status=422,
        detail="The request has 1 error.",
        request_id="5d41402abc4b2a76",
        errors=[
            {"key": "cluster", "problem": "there is no cluster 'mars'", "remedy": "Use default."}
        ],
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None = None
    """Id of the request, which the log of the service names."""
    errors: list[ProblemError] = Field(default_factory=list)
