"""The spec or the federation that made an adapter, read from the files of its run; and what a run
has settled of a spec that leaves its dtype or its rates open.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

from jobs.errors import Fault, InputError, NotInStore
from jobs.federation.artifacts import FEDERATION_FILE
from jobs.plan.dtype_choice import AUTO as AUTO_DTYPE
from jobs.spec.kinds import require_kind
from jobs.spec.load import parse_spec
from jobs.spec.schema import FederatedSpec, RunSpec
from jobs.spec.sections.training import AUTO_RATE, RATE_KEYS
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import SPEC, RunStore

SpecT = TypeVar("SpecT", bound=RunSpec)


def load_recorded_spec(store: ObjectStore, adapter: Manifest) -> RunSpec:
    """Return the spec that the run recorded. Raise InputError if it has changed or is missing."""
    spec = find_recorded_spec(store, adapter)
    if spec is None:
        raise _make_missing_error(adapter)
    return spec


def find_recorded_spec(store: ObjectStore, adapter: Manifest) -> RunSpec | None:
    """Return the spec that the run recorded, or None if its files are not in the store.

    Raise InputError if it has changed.
    """
    try:
        text = RunStore(store, adapter.run).read_text(SPEC)
    except NotInStore:
        return None
    if hashlib.sha256(text.encode()).hexdigest() != adapter.spec_sha256:
        problem = f"the spec of run {adapter.run} has changed since the commit"
        remedy = "Restore the spec whose digest the manifest records."
        raise InputError([Fault(adapter.label, problem, remedy)])
    return _parse_recorded(text, SPEC)


def load_recorded_federation(store: ObjectStore, adapter: Manifest) -> FederatedSpec:
    """Return the federation that the run recorded. Raise InputError if the manifest has another."""
    spec = load_recorded_spec(store, adapter)
    text = _read_run_file(store, adapter, FEDERATION_FILE)
    federation = require_kind(_parse_recorded(text, FEDERATION_FILE), FederatedSpec)
    federation = adopt_settled(federation, spec)
    section = federation.section.model_dump(mode="json", exclude_none=True)
    recorded_section = {
        key: value for key, value in (adapter.federation or {}).items() if value is not None
    }
    if (federation.training, section) != (spec, recorded_section):
        problem = f"the federation of run {adapter.run} has changed since the commit"
        raise InputError([Fault(adapter.label, problem, "Restore the recorded federation.")])
    return federation


def leaves_open(spec: RunSpec) -> bool:
    """Return whether a spec leaves something that its run settles: the dtype, or a rate."""
    return spec.model.dtype == AUTO_DTYPE or bool(_list_open_rates(spec))


def adopt_settled(spec: SpecT, recorded: RunSpec) -> SpecT:
    """Return the spec with what it leaves open as its run has settled it, and nothing else."""
    model, train = spec.model, spec.train
    if model.dtype == AUTO_DTYPE:
        model = model.model_copy(update={"dtype": recorded.model.dtype})
    rates = {key: getattr(recorded.train, key) for key in _list_open_rates(spec)}
    train = train.model_copy(update=rates)
    return spec.model_copy(update={"model": model, "train": train})


def _list_open_rates(spec: RunSpec) -> list[str]:
    train = spec.train
    keys = [key for key in RATE_KEYS if getattr(train, key) == AUTO_RATE]
    if "learning_rate" in keys and train.sparse_learning_rate is None:
        keys.append("sparse_learning_rate")
    return keys


def _parse_recorded(text: str, file_name: str) -> RunSpec:
    """Return the spec, which was written with all keys of its time.

    Before `train.head_learning_rate` existed, a head was trained at the rate of its stage.
    """
    spec = parse_spec(text, file_name)
    if "head_learning_rate" in spec.train.model_fields_set:
        return spec
    train = spec.train.model_copy(update={"head_learning_rate": None})
    return spec.model_copy(update={"train": train})


def _read_run_file(store: ObjectStore, adapter: Manifest, file_name: str) -> str:
    try:
        return RunStore(store, adapter.run).read_text(file_name)
    except NotInStore as error:
        raise _make_missing_error(adapter) from error


def _make_missing_error(adapter: Manifest) -> InputError:
    problem = f"the files of run {adapter.run} are not in the store"
    return InputError([Fault(adapter.label, problem, "Restore them under runs/.")])
