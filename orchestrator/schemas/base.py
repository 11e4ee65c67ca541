"""Base models: a server rejects unknown keys of a request, a client ignores those of a response."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from jobs.spec.strict_model import StrictModel

Item = TypeVar("Item")


class RequestSchema(StrictModel):
    """A request's body: frozen, strictly typed, unknown keys are errors."""


class ResponseSchema(BaseModel):
    """A response's body: frozen, made of an object's attributes, unknown keys are ignored.

    Times are seconds since 1970.
    """

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Page(ResponseSchema, Generic[Item]):
    """Items of a list, and `next`: the cursor of the following page, or null on the last one."""

    items: list[Item]
    next: str | None


def with_example(**example: Any) -> ConfigDict:
    """Return the configuration that adds an example to a model's JSON schema."""
    return ConfigDict(json_schema_extra={"examples": [example]})
