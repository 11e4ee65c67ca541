"""Detect new training data and record which adapter the run starts from and competes with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from jobs.errors import NotInStore
from jobs.retrain.retrain_artifacts import Baseline
from jobs.spec.load import dump_spec
from jobs.spec.schema import RunSpec
from jobs.spec.sections.retrain import SCRATCH
from jobs.store.adapters.commit import LOOK_BACK
from jobs.store.adapters.listing import find_newest
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import list_versions, read_pointer, resolve_adapter
from jobs.store.adapters.versions import find_last_version
from jobs.store.base import ObjectStore

CURRENT = "current"


@dataclass(frozen=True)
class NoNewData:
    """The adapter that was already trained on these rows, and why there is nothing to do."""

    adapter: str
    reason: str


def snapshot_state(
    store: ObjectStore, spec: RunSpec, start: str, train_sha256: str
) -> Baseline | NoNewData:
    """Return the baseline of a run that starts now, or why there is no new data.

    Raise NotInStore if `start` names a version that does not exist.
    """
    versions = list_versions(store, spec.name)
    if not versions:
        if start not in (CURRENT, SCRATCH):
            raise NotInStore(f"{spec.name}@{start}")
        return Baseline(train_sha256=train_sha256)
    pointer = read_pointer(store, spec.name)
    current = resolve_adapter(store, spec.name)
    if current.data.train_sha256 == train_sha256:
        reason = f"{current.label} was trained on these {current.data.rows:,} rows"
        return NoNewData(current.label, reason)
    baseline = Baseline(
        current=current.label,
        pointer_move=pointer.moves[-1].number if pointer else None,
        start=_resolve_start(store, spec.name, start, current),
        newest_version=find_last_version(versions),
        train_sha256=train_sha256,
    )
    if (tried := _find_tried(store, spec, baseline, versions)) is not None:
        reason = f"{tried.label} was trained on these rows with this spec and is not current"
        return NoNewData(tried.label, reason)
    return baseline


def make_training_spec(spec: RunSpec, start: str | None) -> RunSpec:
    """Return the spec of the fine-tune: of kind lora if slora continues from an adapter.

    The sparse stage finds the initial factors, and an adapter already has them.
    """
    if start is None or spec.method.kind != "slora":
        return spec
    return spec.model_copy(update={"method": spec.method.model_copy(update={"kind": "lora"})})


def _resolve_start(store: ObjectStore, name: str, start: str, current: Manifest) -> str | None:
    if start == SCRATCH:
        return None
    return current.label if start == CURRENT else resolve_adapter(store, f"{name}@{start}").label


def _find_tried(
    store: ObjectStore, spec: RunSpec, baseline: Baseline, versions: list[int]
) -> Manifest | None:
    """Return the adapter that the same training has produced already without being current now.

    Without this check a schedule would train and reject the same adapter every time it fires.
    """
    text = dump_spec(make_training_spec(spec, baseline.start))
    digest = hashlib.sha256(text.encode()).hexdigest()
    origin = (baseline.train_sha256, digest, baseline.start)

    def has_origin(manifest: Manifest) -> bool:
        return (manifest.data.train_sha256, manifest.spec_sha256, manifest.parent) == origin

    return find_newest(store, spec.name, versions[-LOOK_BACK:], has_origin)
