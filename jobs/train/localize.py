"""Copy what s3:// addresses name to this machine; each node has a cache of its own."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TypeVar

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.file_selection import resolve_files
from jobs.inspect.datasets.scan import DatasetScan
from jobs.inspect.model_folder import find_model_folder
from jobs.places import boundary
from jobs.spec.address_types import AddressKind
from jobs.store.address import find_address_fault
from jobs.store.open import open_store
from jobs.train.request import EvaluationRequest, HeldOutRows, Request

RequestT = TypeVar("RequestT", bound=Request)
S3_SCHEME = "s3://"


def localize_request(request: RequestT) -> RequestT:
    """Return the request with this node's copies of the base and the rows that are in a bucket.

    Raise InputError if they lie outside the places of this job's project on this node.
    """
    data, model = request.spec.data, request.spec.model.path
    # A restricted worker checks the folder of its own node, which may differ from the driver's.
    is_checked = _is_in_bucket(model) or boundary.is_restricted()
    base = find_model_folder(model) if is_checked else None
    localized = dataclasses.replace(
        request,
        base=base or request.base,
        train_data=_localize_scan(request.train_data, data.train, "data.train"),
        eval_data=request.eval_data and _localize_scan(request.eval_data, data.eval, "data.eval"),
    )
    if isinstance(localized, EvaluationRequest) and localized.previous_eval is not None:
        previous_eval = _localize_held_out(localized.previous_eval)
        return dataclasses.replace(localized, previous_eval=previous_eval)
    return localized


def fetch_spec(location: str) -> Path:
    """Return the spec's file; one in a bucket is copied to a temporary folder of this process."""
    if (fault := find_address_fault("--spec", location)) is not None:
        raise InputError([fault])
    if not location.startswith(S3_SCHEME):
        return Path(location)
    folder, _, file_name = location.rpartition("/")
    text = open_store(folder).get(file_name)
    if len(text) > 1_000_000:
        raise InputError(
            [
                Fault(
                    "--spec",
                    f"{location} is too large for a spec: {len(text)} bytes",
                    "Use the path of a YAML file.",
                )
            ]
        )
    path = Path(tempfile.mkdtemp(prefix="slora-spec-")) / "spec.yaml"
    path.write_bytes(text)
    return path


def _is_in_bucket(path: str | None) -> bool:
    return path is not None and path.startswith(S3_SCHEME)


def _localize_scan(scan: DatasetScan, location: str | None, key: str) -> DatasetScan:
    if location is None or not _is_in_bucket(location):
        boundary.check_files(key, location or "", scan.files, AddressKind.DATA)
        return scan
    return dataclasses.replace(scan, files=resolve_files(location, key=key))


def _localize_held_out(held_out: HeldOutRows) -> HeldOutRows:
    key = "data.eval" if held_out.fraction is None else "data.train"
    scan = _localize_scan(held_out.scan, held_out.path, key)
    truncated = dataclasses.replace(scan, files=scan.files[: held_out.file_count])
    return dataclasses.replace(held_out, scan=truncated)
