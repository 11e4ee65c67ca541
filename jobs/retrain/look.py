"""The first look: what the name means now, and whether there are rows that it has not learnt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from jobs.errors import NotFound
from jobs.retrain.door import SCRATCH
from jobs.retrain.papers import Looked
from jobs.spec import Spec
from jobs.spec_file import dump_spec
from jobs.store.adapters import committed_versions, read_pointer, resolve
from jobs.store.commit import LOOK_BACK
from jobs.store.listing import read_committed
from jobs.store.manifest import BadManifest, Manifest
from jobs.store.objects import ObjectStore

CURRENT = "current"


@dataclass(frozen=True)
class NothingNew:
    """There is nothing to learn: the adapter that has learnt these rows, and in words why."""

    adapter: str
    why: str


def look(store: ObjectStore, spec: Spec, start: str, train_sha256: str) -> Looked | NothingNew:
    """How things stand for a run that begins now. Raises NotFound for a start that is not there."""
    versions = committed_versions(store, spec.name)
    if not versions:
        if start not in (CURRENT, SCRATCH):
            raise NotFound(f"{spec.name}@{start}")
        return Looked(train_sha256=train_sha256)
    pointer = read_pointer(store, spec.name)
    current = resolve(store, spec.name)
    if current.data.train_sha256 == train_sha256:
        why = f"{current.label} was trained on these {current.data.rows:,} rows"
        return NothingNew(current.label, why)
    looked = Looked(
        current=current.label,
        move=pointer.moves[-1].number if pointer else None,
        start=_start(store, spec.name, start, current),
        newest=versions[-1],
        train_sha256=train_sha256,
    )
    if (kept := _tried(store, spec, looked, versions)) is not None:
        why = f"{kept.label} was trained on these rows by this spec, and is not current"
        return NothingNew(kept.label, why)
    return looked


def training_spec(spec: Spec, start: str | None) -> Spec:
    """The spec of the fine-tune itself.

    A sparse stage finds where a low-rank one begins; one that goes on from an adapter has begun.
    """
    if start is None or spec.method.kind != "slora":
        return spec
    return spec.model_copy(update={"method": spec.method.model_copy(update={"kind": "lora"})})


def _start(store: ObjectStore, name: str, start: str, current: Manifest) -> str | None:
    if start == SCRATCH:
        return None
    return current.label if start == CURRENT else resolve(store, f"{name}@{start}").label


def _tried(store: ObjectStore, spec: Spec, looked: Looked, versions: list[int]) -> Manifest | None:
    """An adapter that this very training has made already, and that was not promoted, or no more.

    Without it a schedule would make the same adapter again at each firing, to keep it each time.
    """
    text = dump_spec(training_spec(spec, looked.start))
    digest = hashlib.sha256(text.encode()).hexdigest()
    for version in reversed(versions[-LOOK_BACK:]):
        try:
            found = read_committed(store, spec.name, version)
        except (BadManifest, NotFound):
            continue
        made = (found.data.train_sha256, found.spec_sha256, found.parent)
        if made == (looked.train_sha256, digest, looked.start):
            return found
    return None
