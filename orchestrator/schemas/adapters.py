"""Adapters: their versions, and the pointer that says which version a bare name means."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from jobs.spec.limits import VersionNumber
from orchestrator.schemas.base import RequestSchema, ResponseSchema, with_example
from orchestrator.schemas.runs import RUN_EXAMPLE

ADAPTER_EXAMPLE: dict[str, Any] = {
    "store": "s3://models/slora/",
    "name": "chat",
    "version": 2,
    "label": "chat@v2",
    "project": "default",
    "run": RUN_EXAMPLE["id"],
    "attempt": 1,
    "kind": "slora",
    "parent": "chat@v1",
    "search": None,
    "base_digest": "0a" * 32,
    "size": 1863224,
    "committed_at": 1767236400.0,
}
POINTER_EXAMPLE: dict[str, Any] = {
    "store": ADAPTER_EXAMPLE["store"],
    "name": "chat",
    "version": 2,
    "move": 3,
}
SERVING_EXAMPLE: dict[str, Any] = {
    "server": "vLLM",
    "prepare": "slora adapters pull chat@v2 FOLDER",
    "command": "vllm serve BASE --enable-lora --max-lora-rank 8 --lora-modules chat=FOLDER",
    "note": "",
}


class PromoteAdapterRequest(RequestSchema):
    """The version that a bare name is to mean."""

    version: VersionNumber = Field(examples=[2])


class AdapterResponse(ResponseSchema):
    """A committed version of an adapter."""

    model_config = with_example(**ADAPTER_EXAMPLE)

    store: str
    name: str
    version: int
    label: str
    project: str
    run: str
    attempt: int
    kind: str
    parent: str | None = None
    search: str | None = None
    base_digest: str
    size: int
    committed_at: float


class ServingOptionResponse(ResponseSchema):
    """A server that can answer with an adapter."""

    model_config = with_example(**SERVING_EXAMPLE)

    server: str
    prepare: str
    """Command that writes FOLDER; empty if the server needs none."""
    command: str
    note: str = ""
    """What holds it back, or what is lost."""


class AdapterDetailResponse(AdapterResponse):
    """A committed version with its manifest from the store, and what can serve it."""

    model_config = with_example(
        **ADAPTER_EXAMPLE, manifest={"format": 1, "name": "chat"}, served_by=[SERVING_EXAMPLE]
    )

    manifest: dict[str, Any]
    served_by: list[ServingOptionResponse] | None = None
    """None if the store does not answer now."""


class PointerResponse(ResponseSchema):
    """The version that a bare name means, and the number of the move that made it so."""

    model_config = with_example(**POINTER_EXAMPLE)

    store: str
    name: str
    version: int
    move: int


class AdapterNameResponse(ResponseSchema):
    """An adapter's name in one store: its current version, and all versions, the oldest first."""

    model_config = with_example(
        store=ADAPTER_EXAMPLE["store"],
        name="chat",
        current=POINTER_EXAMPLE,
        versions=[ADAPTER_EXAMPLE],
    )

    store: str
    name: str
    current: PointerResponse | None = None
    versions: list[AdapterResponse]
