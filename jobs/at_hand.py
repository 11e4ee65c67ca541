"""What s3:// names, as files of this machine: each node has its own cache."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from jobs.data.files import resolve
from jobs.data.survey import Survey
from jobs.errors import Fault, InputError
from jobs.model_files import model_folder
from jobs.request import HeldOut, Request
from jobs.store.objects import open_store

S3 = "s3://"


def at_hand(request: Request) -> Request:
    """The same request with the base and the rows of this node, where they come from a bucket."""
    data = request.spec.data
    base = model_folder(request.spec.model.path) if _in_bucket(request.spec.model.path) else None
    return dataclasses.replace(
        request,
        base=base or request.base,
        train=_rows(request.train, data.train),
        evaluation=request.evaluation and _rows(request.evaluation, data.eval),
        old=request.old and _old(request.old),
    )


def spec_at_hand(name: str) -> Path:
    """The spec's file; one that lies in a bucket is written beside, for as long as we live."""
    if not name.startswith(S3):
        return Path(name)
    folder, _, file = name.rpartition("/")
    text = open_store(folder).get(file)
    if len(text) > 1_000_000:
        raise InputError([Fault("--spec", f"{name} is no spec: {len(text)} bytes", "Name a YAML.")])
    path = Path(tempfile.mkdtemp(prefix="slora-spec-")) / "spec.yaml"
    path.write_bytes(text)
    return path


def _in_bucket(path: str | None) -> bool:
    return path is not None and path.startswith(S3)


def _rows(found: Survey, where: str | None) -> Survey:
    if where is None or not _in_bucket(where):
        return found
    return dataclasses.replace(found, files=resolve(where))


def _old(held: HeldOut) -> HeldOut:
    found = _rows(held.found, held.where)
    first = dataclasses.replace(found, files=found.files[: held.files])
    return dataclasses.replace(held, found=first)
