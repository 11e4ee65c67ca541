"""The request of a run: validated once at intake, then kept in the store with its spec's digest.

It is the first file of a run's folder. A lost registry is rebuilt from it: nothing else tells the
run's project, priority and cluster, or that the run is waiting at all.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.kinds import KINDS, Kind
from jobs.spec.limits import MAX_INT32, LargeCount, Priority
from jobs.spec.schema import RunSpec
from jobs.spec.strict_model import StrictModel
from jobs.spec.yaml_text import MAX_BYTES, YAML_ERRORS, parse_yaml_fast
from jobs.store.adapters.manifest import Digest, Name
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import format_run_key
from jobs.store.strict_json import load_strictly
from orchestrator.registry.tenancy.instances import INSTANCE_PATTERN
from orchestrator.registry.values import DEFAULT_CLUSTER, DEFAULT_PROJECT

REQUEST_FILE = "request.json"
MAX_REQUEST_BYTES = 7 * MAX_BYTES
"""The text of a spec with every character escaped, and the other fields."""


class RunRequest(StrictModel):
    """A validated run, as intake accepted it."""

    format: Literal[1] = 1
    kind: Kind = "finetune"
    name: Name
    """Name of the adapter that the run makes."""
    store: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]*$")
    """Absolute URL, inside one of the service's stores."""
    project: Name = DEFAULT_PROJECT
    cluster: Name = DEFAULT_CLUSTER
    priority: Priority = 0
    workers: Annotated[int, Field(ge=1, le=MAX_INT32)] = 1
    cpus: LargeCount = 0
    """CPUs of all its workers."""
    gpus: LargeCount = 0
    tokens: LargeCount | None = None
    """The most tokens that it can train on; None if only the rows can tell."""
    data: Annotated[str, Field(max_length=4096)] = ""
    """Location of the training rows."""
    spec_text: Annotated[str, Field(max_length=MAX_BYTES)] = ""
    """The canonical spec, with defaults: the text that the job reads."""
    spec_sha256: Digest | None = None
    instance: Annotated[str, Field(pattern=INSTANCE_PATTERN)] | None = None
    """Id of the registry that accepted the run; None if an older version of slora did."""

    def load_spec(self) -> RunSpec:
        """Build the spec without the checks of intake, for which its digest vouches.

        Raise InputError if another version of slora wrote a spec that this one does not know.
        """
        try:
            values = parse_yaml_fast(self.spec_text)
            return KINDS[self.kind].spec_class.model_validate(values)
        except (*YAML_ERRORS, RecursionError) as error:
            raise _make_error(REQUEST_FILE, f"{type(error).__name__} in spec_text") from error


def digest_spec(spec_text: str) -> str:
    """Return the digest of a spec's text."""
    return sha256(spec_text.encode()).hexdigest()


def get_request_key(run_id: str) -> str:
    """Return the key of a run's request."""
    return format_run_key(run_id, REQUEST_FILE)


def write_request(store: ObjectStore, run_id: str, request: RunRequest) -> None:
    """Write the request of a new run. Raise AlreadyExists or StoreError."""
    store.put(get_request_key(run_id), request.model_dump_json().encode(), create_only=True)


def read_request(store: ObjectStore, run_id: str) -> RunRequest:
    """Read a run's request and verify its digest. Raise NotInStore or InputError."""
    key = get_request_key(run_id)
    data = store.read(key, 0, MAX_REQUEST_BYTES + 1)
    try:
        if len(data) > MAX_REQUEST_BYTES:
            raise ValueError(f"larger than {MAX_REQUEST_BYTES} bytes")
        load_strictly(data)
        request = RunRequest.model_validate_json(data)
        if request.spec_sha256 != digest_spec(request.spec_text):
            raise ValueError("spec_sha256 is not the digest of spec_text")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise _make_error(key, first["msg"]) from error
    except ValueError as error:
        raise _make_error(key, str(error)) from error
    return request


def _make_error(key: str, problem: str) -> InputError:
    fault = Fault(key, f"not a valid request: {problem[:200]!a}", "Submit the run again.")
    return InputError([fault])
