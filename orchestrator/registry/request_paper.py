"""What a service was asked, as it lies in the store before anything else of a run does.

With it a registry that is lost comes back with what nothing else tells: which project a run is of,
how urgent it is, where it is wanted, and that it waits at all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec import Frozen
from jobs.spec_file import MOST_BYTES, NOT_YAML, plain_values
from jobs.store.manifest import Name
from jobs.store.objects import ObjectStore
from jobs.store.strict_json import load_strictly
from orchestrator.registry.hostile import MENDED
from orchestrator.registry.values import Kind

REQUEST = "request.json"
LARGEST = 7 * MOST_BYTES
"""A spec's text with every character escaped, and a little."""


class RequestPaper(Frozen):
    """A run that was asked for."""

    format: Literal[1] = 1
    kind: Kind
    name: Name
    project: Name
    cluster: Name
    priority: Annotated[int, Field(ge=-1000, le=1000)]
    workers: Annotated[int, Field(ge=1, lt=2**31)]
    tokens: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    text: Annotated[str, Field(max_length=MOST_BYTES)]
    """The spec that its job will read."""

    def mapping(self) -> dict[str, Any]:
        """The spec as plain values. It was a spec when it was written; InputError where not."""
        try:
            found = plain_values(self.text)
        except (*NOT_YAML, RecursionError) as wrong:
            raise InputError([Fault("spec", f"no YAML: {str(wrong)[:200]!a}", MENDED)]) from wrong
        if not isinstance(found, dict):
            raise InputError([Fault("spec", "not a mapping", MENDED)])
        return found


def request_bytes(paper: RequestPaper) -> bytes:
    """What `read_request` reads."""
    return paper.model_dump_json().encode()


def read_request(store: ObjectStore, key: str) -> RequestPaper | Fault:
    """The paper, or what is wrong with it. Raises NotFound."""
    data = store.read(key, 0, LARGEST + 1)
    try:
        if len(data) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        load_strictly(data)
        return RequestPaper.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        return Fault(key, f"no request: {first['msg'][:200]!a}", MENDED)
    except ValueError as error:
        return Fault(key, f"no request: {str(error)[:200]!a}", MENDED)
