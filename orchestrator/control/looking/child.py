"""The process that looks at the files of a request: `python -m orchestrator.control.looking.child`.

It reads a LookRequest from its standard input, limits itself, and writes a LookAnswer.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from jobs.errors import Fault, InputError, JobsError, StoreError
from jobs.places.boundary import make_environment, restrict_places
from jobs.places.places import S3
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from jobs.store.s3.boto_client import get_client
from jobs.store.settings import read_store_settings
from orchestrator.control.looking.child_limits import apply_limits, drop_rights
from orchestrator.control.looking.file_checks import NotChecked, check_data, check_model
from orchestrator.control.looking.look_protocol import (
    MAX_TEXT,
    LookAnswer,
    LookRequest,
    make_fault_texts,
)
from orchestrator.control.new_data import compute_data_fingerprint


def main() -> None:
    """Answer the request."""
    # What a library prints must not be part of the answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    request = LookRequest.model_validate_json(sys.stdin.buffer.read())
    _load_libraries(request)
    drop_rights(request.account)
    apply_limits(request.limits)
    # For the process that builds models, which this one starts.
    os.environ.update(make_environment(request.places))
    with os.fdopen(answers, "wb") as stream:
        stream.write(answer_request(request).model_dump_json().encode())


def _load_libraries(request: LookRequest) -> None:
    """Load what is needed later: another user may not be able to read where Python lies."""
    if request.question == "validate_run":
        import pyarrow.parquet  # noqa: F401
    if S3 in request.model_dump_json():
        get_client(read_store_settings().s3)
        # Host names are encoded by a module that is loaded with the first one.
        "localhost".encode("idna")


def answer_request(request: LookRequest) -> LookAnswer:
    """Look at the files, and return what is known of them."""
    try:
        with restrict_places(request.places):
            return _look(request)
    except InputError as invalid:
        return LookAnswer(faults=make_fault_texts(invalid.faults))
    except StoreError as error:
        return LookAnswer(store_error=str(error)[:MAX_TEXT])
    except MemoryError:
        memory = f"{request.limits.memory_bytes / 2**30:g} GiB"
        return LookAnswer(unchecked=f"it needs more than {memory} of memory")
    except JobsError as error:
        # Beyond a limit, unreadable, without torch, or a library that failed.
        return LookAnswer(unchecked=str(error)[:MAX_TEXT])


def _look(request: LookRequest) -> LookAnswer:
    if request.question == "fingerprint_data":
        max_bytes = request.limits.read_bytes
        check_data("data.train", request.location, max_bytes, must_read=False)
        return LookAnswer(fingerprint=compute_data_fingerprint(request.location))
    spec = validate_spec(request.spec)
    _check_files(request, spec)
    # Its store is the service's matter, which has read the request from it.
    validate_run(spec, quick=True, with_store=False, max_bytes=request.limits.read_bytes)
    return LookAnswer()


def _check_files(request: LookRequest, spec: RunSpec) -> None:
    """Check the files of all keys. Raise InputError with the faults of all, else NotChecked."""
    max_bytes = request.limits.read_bytes
    checks = [partial(check_model, spec.model.path, max_bytes)]
    for key, location in (("data.train", spec.data.train), ("data.eval", spec.data.eval)):
        if location is not None:
            checks.append(partial(check_data, key, location, max_bytes))
    faults, unknown = list[Fault](), list[NotChecked]()
    for check in checks:
        try:
            check()
        except InputError as invalid:
            faults += invalid.faults
        except NotChecked as error:
            unknown.append(error)
    if faults:
        raise InputError(faults)
    if unknown:
        raise unknown[0]


if __name__ == "__main__":
    main()
