"""The first look: what the name means now, and whether there are rows that it has not learnt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from jobs.errors import NotInStore
from jobs.retrain.retrain_artifacts import Baseline
from jobs.spec.load import dump_spec
from jobs.spec.schema import RunSpec
from jobs.spec.sections.retrain import SCRATCH
from jobs.store.adapters.commit import LOOK_BACK
from jobs.store.adapters.listing import read_committed
from jobs.store.adapters.manifest import BadManifest, Manifest
from jobs.store.adapters.operations import list_versions, read_pointer, resolve_adapter
from jobs.store.base import ObjectStore

CURRENT = "current"


@dataclass(frozen=True)
class NoNewData:
    """There is nothing to learn: the adapter that has learnt these rows, and in words why."""

    adapter: str
    reason: str


def snapshot_state(
    store: ObjectStore, spec: RunSpec, start: str, train_sha256: str
) -> Baseline | NoNewData:
    """How things stand for a run that begins now. Raises NotFound for a start that is not there."""
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
        newest_version=versions[-1],
        train_sha256=train_sha256,
    )
    if (tried := _find_tried(store, spec, baseline, versions)) is not None:
        reason = f"{tried.label} was trained on these rows by this spec, and is not current"
        return NoNewData(tried.label, reason)
    return baseline


def make_training_spec(spec: RunSpec, start: str | None) -> RunSpec:
    """The spec of the fine-tune itself.

    A sparse stage finds where a low-rank one begins; one that goes on from an adapter has begun.
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
    """An adapter that this very training has made already, and that was not promoted, or no more.

    Without it a schedule would make the same adapter again at each firing, to keep it each time.
    """
    text = dump_spec(make_training_spec(spec, baseline.start))
    digest = hashlib.sha256(text.encode()).hexdigest()
    for version in reversed(versions[-LOOK_BACK:]):
        try:
            manifest = read_committed(store, spec.name, version)
        except (BadManifest, NotInStore):
            continue
        origin = (manifest.data.train_sha256, manifest.spec_sha256, manifest.parent)
        if origin == (baseline.train_sha256, digest, baseline.start):
            return manifest
    return None
