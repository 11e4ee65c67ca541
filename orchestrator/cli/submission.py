"""Prepare a spec file for the service: read it, check it, and make its paths absolute."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import InputError, NotInstalled
from jobs.federation.check import check_federation
from jobs.inspect.datasets.file_selection import HUB_ID
from jobs.plan.preflight import validate_run
from jobs.spec.kinds import Kind, get_kind
from jobs.spec.load import make_trial_spec, validate_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import FederatedSpec, RunSpec, SearchSpec
from jobs.spec.yaml_text import read_yaml_file
from jobs.train.early_stopping import find_stop_faults


@dataclass(frozen=True)
class PreparedSubmission:
    """A spec to submit, and the keys that could not be checked here."""

    kind: Kind
    name: str
    spec: Mapping[str, Any]
    """The keys from the file and --set, without defaults: the service sets those."""
    missing_keys: tuple[str, ...]
    """Keys whose paths do not exist on this machine."""


def read_submission(path: Path, overrides: Sequence[str] = ()) -> PreparedSubmission:
    """Read and check a spec file. Raise InputError with every error that is visible from here."""
    values = read_yaml_file(path, overrides)
    written_spec = validate_spec(values)
    spec = make_paths_absolute(written_spec)
    missing_keys = _find_missing_keys(spec)
    if missing_keys and not _has_missing_relative(written_spec, missing_keys):
        # The model or the rows are elsewhere: the job checks them.
        if faults := list(find_stop_faults(spec)):
            raise InputError(faults)
    else:
        _check_quickly(spec)
    kind = get_kind(spec).name
    return PreparedSubmission(kind, spec.name, _dump_written_keys(spec, values), missing_keys)


def _check_quickly(spec: RunSpec) -> None:
    training = make_trial_spec(spec, {}) if isinstance(spec, SearchSpec) else spec
    try:
        if isinstance(training, FederatedSpec):
            check_federation(training, quick=True, store=False)
        else:
            validate_run(training, quick=True, with_store=False)
    except NotInstalled:
        # A client without torch cannot build the model: the job makes the plan.
        return


def _dump_written_keys(spec: RunSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that were written, with absolute paths: the service chooses the store."""
    dumped = spec.model_dump(mode="json", exclude_unset=True)
    return {key: value for key, value in dumped.items() if key in values}


def _find_missing_keys(spec: RunSpec) -> tuple[str, ...]:
    """Return keys whose files are not on this machine. The job resolves hub ids and URLs."""
    return tuple(key for key, path in _list_paths(spec).items() if not _is_local(path))


def _has_missing_relative(spec: RunSpec, missing_keys: Sequence[str]) -> bool:
    """Return True if a missing path was written as a relative one: it exists nowhere else."""
    written_paths = _list_paths(spec)
    return any(
        not (written_paths[key].startswith(("/", "~")) or "://" in written_paths[key])
        and not HUB_ID.fullmatch(written_paths[key])
        for key in missing_keys
    )


def _list_paths(spec: RunSpec) -> dict[str, str]:
    eval_rows = {} if spec.data.eval is None else {"data.eval": spec.data.eval}
    return {"model.path": spec.model.path, "data.train": spec.data.train, **eval_rows}


def _is_local(path: str) -> bool:
    local_path = path.removeprefix("file://")
    return "://" not in local_path and (
        os.path.exists(local_path) or bool(glob.glob(local_path, recursive=True))
    )
