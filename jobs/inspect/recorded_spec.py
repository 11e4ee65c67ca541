"""The spec, or the full federation, that an adapter was made from, out of its run's files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jobs.errors import Fault, InputError, NotInStore
from jobs.federation.artifacts import FEDERATION_FILE
from jobs.federation.load_federation import FederatedSpec, load_federated
from jobs.spec.load import load_spec
from jobs.spec.schema import RunSpec
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import SPEC, RunStore

Loaded = TypeVar("Loaded")


def load_recorded_spec(store: ObjectStore, adapter: Manifest) -> RunSpec:
    """Return the spec that the run wrote. Raise InputError if it is not the manifest's any more."""
    text = _read_run_file(store, adapter, SPEC)
    if hashlib.sha256(text.encode()).hexdigest() != adapter.spec_sha256:
        problem = f"the spec of run {adapter.run} has changed since the training"
        raise InputError(
            [Fault(adapter.label, problem, "Restore the spec with the manifest's digest.")]
        )
    return _load_text(text, load_spec)


def load_recorded_federation(store: ObjectStore, adapter: Manifest) -> FederatedSpec:
    """Return the federation that the run wrote. Raise InputError if it has changed."""
    spec = load_recorded_spec(store, adapter)
    federation = _load_text(_read_run_file(store, adapter, FEDERATION_FILE), load_federated)
    section = federation.section.model_dump(mode="json", exclude_none=True)
    recorded_section = {
        key: value for key, value in (adapter.federation or {}).items() if value is not None
    }
    if (federation.spec, section) != (spec, recorded_section):
        problem = f"the federation of run {adapter.run} has changed since the training"
        raise InputError(
            [Fault(adapter.label, problem, "Restore the federation that its manifest names.")]
        )
    return federation


def _read_run_file(store: ObjectStore, adapter: Manifest, file_name: str) -> str:
    try:
        return RunStore(store, adapter.run).read_text(file_name)
    except NotInStore as error:
        problem = f"the files of run {adapter.run} are not in the store"
        raise InputError(
            [Fault(adapter.label, problem, "Restore runs/ beside adapters/.")]
        ) from error


def _load_text(text: str, load: Callable[[Path], Loaded]) -> Loaded:
    with tempfile.TemporaryDirectory(prefix="slora-spec-") as scratch:
        path = Path(scratch) / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path)
