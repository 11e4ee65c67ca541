"""The rows that an adapter was judged by when it was trained, where they still are what they were.

A file of its own (data.eval) is known by its digest. A share of data.train (eval_fraction) is known
as long as the files that it was taken from lie first and unchanged among those that are there now:
rows that came later, in files behind them, don't move it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from jobs.data.survey import Survey, survey
from jobs.errors import InputError
from jobs.recorded import recorded_spec
from jobs.request import HeldOut
from jobs.spec import Spec
from jobs.store.manifest import Manifest
from jobs.store.objects import ObjectStore

CHUNK = 1 << 20


def old_rows(store: ObjectStore, adapter: Manifest) -> HeldOut | str:
    """The rows, or why they can't be had, in words."""
    try:
        spec = recorded_spec(store, adapter)
    except InputError as wrong:
        return wrong.faults[0].problem
    share = spec.data.eval_fraction
    where = spec.data.eval if share is None else spec.data.train
    if where is None:
        return f"{adapter.label} was judged by none"
    key = "data.eval" if share is None else "data.train"
    try:
        found = survey(where, spec.data.format, spec.model.task, key)
    except InputError as wrong:
        return f"{where} can't be read any more: {wrong.faults[0].problem}"
    if share is None:
        if found.sha256 != adapter.data.eval_sha256:
            return f"{where} has changed since {adapter.label} was judged by it"
        return HeldOut(found, where)
    return _share(spec, adapter, found, where, share)


def _share(spec: Spec, adapter: Manifest, found: Survey, where: str, share: float) -> HeldOut | str:
    count = _files_of(found.files, adapter.data.train_sha256)
    if count is None:
        return f"they were a share of {where}, whose first files have changed since"
    first = replace(found, files=found.files[:count], rows_by_file=found.rows_by_file[:count])
    return HeldOut(first, where, count, share, spec.train.seed)


def _files_of(files: tuple[Path, ...], sha256: str) -> int | None:
    """How many of the files, from the first on, have this digest together."""
    digest = hashlib.sha256()
    for count, path in enumerate(files, start=1):
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        if digest.hexdigest() == sha256:
            return count
    return None
