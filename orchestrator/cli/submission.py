"""From a spec's file to what is sent to the service: read, checked, its paths made whole."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError
from jobs.federation.check import check_federation
from jobs.federation.load_federation import (
    FEDERATION,
    FederatedSpec,
    is_federated,
    validate_federated,
)
from jobs.inspect.datasets.files import HUB_ID
from jobs.plan.preflight import make_paths_absolute, validate_run
from jobs.retrain.load_retrain import is_retrain, validate_retrain
from jobs.search.load_search import validate_search
from jobs.spec.load import read_raw_spec, validate_spec
from jobs.spec.schema import RunSpec, StrictModel
from jobs.train.early_stopping import find_stop_faults


@dataclass(frozen=True)
class PreparedSubmission:
    """What is sent, and what could not be checked here."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    """What its file and --set say, and no defaults: those are the service's."""
    missing_keys: tuple[str, ...]
    """Keys whose paths are not on this machine."""


def read_submission(path: Path, overrides: Sequence[str] = ()) -> PreparedSubmission:
    """Raises InputError with every fault that can be seen from here."""
    raw = read_raw_spec(path, overrides)
    kind = _detect_kind(raw)
    written_spec, sections = _validate_kind(kind, raw)
    resolved_spec = make_paths_absolute(written_spec)
    missing_keys = _find_missing_keys(resolved_spec)
    if missing_keys and not _has_missing_relative(written_spec, missing_keys):
        # The model or the rows are elsewhere: what they would tell is told by the job.
        if faults := list(find_stop_faults(resolved_spec)):
            raise InputError(faults)
    elif is_federated(raw):
        check_federation(_validate_federation(raw, resolved_spec), quick=True, store=False)
    else:
        validate_run(resolved_spec, quick=True, with_store=False)
    return PreparedSubmission(
        kind,
        resolved_spec.name,
        {**_dump_written_keys(resolved_spec, raw), **sections},
        missing_keys,
    )


def _detect_kind(raw: Mapping[str, Any]) -> str:
    if is_retrain(raw) and not is_federated(raw):
        if raw.get("search") is not None:
            raise InputError([Fault("search", "stands beside retrain", "Keep one of the two.")])
        return "retrain"
    if raw.get("search") is not None:
        return "search"
    # Its own door refuses a retrain section beside it.
    return "federate" if is_federated(raw) else "finetune"


def _validate_kind(kind: str, raw: Mapping[str, Any]) -> tuple[RunSpec, dict[str, Any]]:
    """The spec of a training, and the sections that are not of it."""
    if kind == "finetune":
        return validate_spec(raw), {}
    if kind == "federate":
        federated = validate_federated(raw)
        return federated.spec, _dump_section(FEDERATION, federated.section)
    if kind == "retrain":
        retraining = validate_retrain(raw)
        return retraining.spec, _dump_section(kind, retraining.section)
    search = validate_search(raw)
    clients = _dump_section(FEDERATION, search.federation) if search.federation else {}
    return search.spec, {**_dump_section(kind, search.section), **clients}


def _validate_federation(raw: Mapping[str, Any], resolved_spec: RunSpec) -> FederatedSpec:
    """The federation, or that of a search's trials, with whole paths."""
    training_keys = {key: value for key, value in raw.items() if key != "search"}
    return FederatedSpec(resolved_spec, validate_federated(training_keys).section)


def _dump_section(key: str, section: StrictModel) -> dict[str, Any]:
    return {key: section.model_dump(mode="json", exclude_unset=True)}


def _dump_written_keys(spec: RunSpec, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What was written, with whole paths. A store that nobody named is the service's to choose."""
    values = spec.model_dump(mode="json", exclude_unset=True)
    if is_federated(raw):
        # Put in by its door, which refuses it from others: the service's own puts it in again.
        del values["train"]["steps"]
    return {key: value for key, value in values.items() if key in raw}


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
