"""What a service was asked, as it lies in the store before anything else of a run does.

With it a registry that is lost comes back with what nothing else tells: which project a run is of,
how urgent it is, where it is wanted, and that it waits at all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.kinds import Kind
from jobs.spec.strict_model import StrictModel
from jobs.spec.yaml_text import MAX_BYTES, YAML_ERRORS, parse_yaml_fast
from jobs.store.adapters.manifest import Name
from jobs.store.base import ObjectStore
from jobs.store.strict_json import load_strictly
from orchestrator.registry.rebuild.untrusted import FIX_HINT

REQUEST_FILE = "request.json"
MAX_REQUEST_BYTES = 7 * MAX_BYTES
"""A spec's text with every character escaped, and a little."""


class RunRequest(StrictModel):
    """A run that was asked for."""

    format: Literal[1] = 1
    kind: Kind
    name: Name
    project: Name
    cluster: Name
    priority: Annotated[int, Field(ge=-1000, le=1000)]
    workers: Annotated[int, Field(ge=1, lt=2**31)]
    tokens: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    spec_text: Annotated[str, Field(max_length=MAX_BYTES)]
    """The spec that its job will read."""

    def parse_spec(self) -> dict[str, Any]:
        """The spec as plain values. It was a spec when it was written; InputError where not."""
        try:
            values = parse_yaml_fast(self.spec_text)
        except (*YAML_ERRORS, RecursionError) as error:
            raise InputError([Fault("spec", f"no YAML: {str(error)[:200]!a}", FIX_HINT)]) from error
        if not isinstance(values, dict):
            raise InputError([Fault("spec", "not a mapping", FIX_HINT)])
        return values


def encode_request(request: RunRequest) -> bytes:
    """What `read_request` reads."""
    return request.model_dump_json().encode()


def read_request(store: ObjectStore, key: str) -> RunRequest | Fault:
    """The paper, or what is wrong with it. Raises NotFound."""
    data = store.read(key, 0, MAX_REQUEST_BYTES + 1)
    try:
        if len(data) > MAX_REQUEST_BYTES:
            raise ValueError(f"more than {MAX_REQUEST_BYTES} bytes")
        load_strictly(data)
        return RunRequest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        return Fault(key, f"no request: {first['msg'][:200]!a}", FIX_HINT)
    except ValueError as error:
        return Fault(key, f"no request: {str(error)[:200]!a}", FIX_HINT)
