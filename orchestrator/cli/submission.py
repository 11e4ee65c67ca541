"""From a spec's file to what is sent to the service: read, checked, its paths made whole."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import InputError
from jobs.federation.check import check_federation
from jobs.inspect.datasets.files import HUB_ID
from jobs.plan.preflight import validate_run
from jobs.spec.kinds import Kind, get_kind
from jobs.spec.load import make_trial_spec, validate_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.schema import FederatedSpec, RunSpec, SearchSpec
from jobs.spec.yaml_text import read_yaml_file
from jobs.train.early_stopping import find_stop_faults


@dataclass(frozen=True)
class PreparedSubmission:
    """What is sent, and what could not be checked here."""

    kind: Kind
    name: str
    spec: Mapping[str, Any]
    """What its file and --set say, and no defaults: those are the service's."""
    missing_keys: tuple[str, ...]
    """Keys whose paths are not on this machine."""


def read_submission(path: Path, overrides: Sequence[str] = ()) -> PreparedSubmission:
    """Raises InputError with every fault that can be seen from here."""
    values = read_yaml_file(path, overrides)
    written_spec = validate_spec(values)
    spec = make_paths_absolute(written_spec)
    missing_keys = _find_missing_keys(spec)
    if missing_keys and not _has_missing_relative(written_spec, missing_keys):
        # The model or the rows are elsewhere: the job checks what they would tell.
        if faults := list(find_stop_faults(spec)):
            raise InputError(faults)
    else:
        _check_quickly(spec)
    kind = get_kind(spec).name
    return PreparedSubmission(kind, spec.name, _dump_written_keys(spec, values), missing_keys)


def _check_quickly(spec: RunSpec) -> None:
    training = make_trial_spec(spec, {}) if isinstance(spec, SearchSpec) else spec
    if isinstance(training, FederatedSpec):
        check_federation(training, quick=True, store=False)
    else:
        validate_run(training, quick=True, with_store=False)


def _dump_written_keys(spec: RunSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that were written, with absolute paths: the service chooses the store."""
    dumped = spec.model_dump(mode="json", exclude_unset=True)
    return {key: value for key, value in dumped.items() if key in values}


def _find_missing_keys(spec: RunSpec) -> tuple[str, ...]:
    """Keys whose files are not here. Hub ids and URLs are looked up where the job runs."""
    return tuple(key for key, path in _list_paths(spec).items() if not _is_local(path))


def _has_missing_relative(spec: RunSpec, missing_keys: Sequence[str]) -> bool:
    """Whether one of them is relative as it was written: it is nowhere else either."""
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
