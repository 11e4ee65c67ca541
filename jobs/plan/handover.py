"""The hand-over of a validated run: the command validates in full, and the job reuses the result.

`validated.json` in the run's folder holds the scans of the data, the digest of the base and the
plan. It is used only for the same spec on a machine with the same memory, and only while every file
that was read is unchanged; otherwise the job validates in full.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from jobs.errors import InputError, StoreError
from jobs.inspect.base_digest import BaseDigest, digest_base
from jobs.inspect.datasets.scan import DatasetScan
from jobs.inspect.file_stamps import FileStamp
from jobs.inspect.model_files import read_model
from jobs.places.boundary import is_restricted
from jobs.plan.dtype_choice import AUTO, set_dtype
from jobs.plan.estimate.machine import read_local_memory
from jobs.plan.plan import Plan
from jobs.plan.preflight import (
    ValidatedRun,
    check_store,
    check_strategies,
    stamp_base,
    stamp_data,
    validate_run,
)
from jobs.plan.rate_choice import set_rates
from jobs.spec.load import dump_spec
from jobs.spec.schema import RunSpec
from jobs.spec.sections.training import AUTO_RATE, RATE_KEYS
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore

HANDOVER_FILE = "validated.json"


@dataclass(frozen=True)
class Handover:
    """The result of a validation, and what it depends on."""

    spec_sha256: str
    local_memory: int
    base: BaseDigest
    stamps: tuple[FileStamp, ...]
    """All files that were read, as they were before they were read."""
    train_scan: DatasetScan
    eval_scan: DatasetScan | None
    plan: Plan


_HANDOVER = TypeAdapter(Handover)


def write_validated(validated: ValidatedRun, runs: RunStore) -> None:
    """Write a run's validation to its folder, with the digest of its base."""
    handover = Handover(
        spec_sha256=_digest_spec(validated.spec),
        local_memory=read_local_memory(),
        base=validated.base or digest_base(validated.model.folder),
        stamps=validated.stamps,
        train_scan=validated.train_scan,
        eval_scan=validated.eval_scan,
        plan=validated.plan,
    )
    runs.store.put(runs.key(HANDOVER_FILE), _HANDOVER.dump_json(handover))


def validate_or_reuse(spec: RunSpec, run_id: str) -> ValidatedRun:
    """Return the validation that was handed over, or validate in full if anything has changed.

    Raise InputError with all faults, but those of single rows: `tokenize_run` reports them.
    """
    # A file in the store must not tell a restricted job which files it may read.
    handover = None if is_restricted() else _read_handover(spec, run_id)
    reused = handover and _reuse(spec.training, handover)
    return reused or validate_run(spec, tokenizes_next=True)


def _read_handover(spec: RunSpec, run_id: str) -> Handover | None:
    try:
        runs = RunStore(open_store(spec.store), run_id)
        return _HANDOVER.validate_json(runs.store.get(runs.key(HANDOVER_FILE)))
    except (InputError, StoreError, ValidationError):
        # Absent or unreadable. The full validation reports what is wrong with the store.
        return None


def _reuse(spec: RunSpec, handover: Handover) -> ValidatedRun | None:
    if spec.model.dtype == AUTO and handover.plan.dtype.is_auto:
        spec = set_dtype(spec, handover.plan.dtype.dtype)
    if any(getattr(spec.train, key) == AUTO_RATE for key in RATE_KEYS):
        spec = set_rates(spec, handover.plan.rates)
    if handover.spec_sha256 != _digest_spec(spec) or handover.local_memory != read_local_memory():
        return None
    model, faults = read_model(spec.model)
    try:
        stamps = (*stamp_base(model), *stamp_data(spec)) if model else ()
    except (InputError, OSError):
        return None
    if model is None or faults or stamps != handover.stamps:
        return None
    # What depends on this machine and this moment is checked again.
    if faults := [*check_strategies(spec), *check_store(spec, write=True)]:
        raise InputError(faults)
    validated = ValidatedRun(
        spec, model, handover.train_scan, handover.eval_scan, handover.plan, stamps=stamps
    )
    return replace(validated, base=handover.base)


def _digest_spec(spec: RunSpec) -> str:
    return hashlib.sha256(dump_spec(spec).encode()).hexdigest()
