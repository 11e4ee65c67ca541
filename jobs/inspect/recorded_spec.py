"""The spec, or the whole federation, that an adapter was made by, from its run's own papers."""

from __future__ import annotations

import hashlib

from jobs.errors import Fault, InputError, NotInStore
from jobs.federation.artifacts import FEDERATION_FILE
from jobs.spec.kinds import require_kind
from jobs.spec.load import parse_spec
from jobs.spec.schema import FederatedSpec, RunSpec
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import SPEC, RunStore


def load_recorded_spec(store: ObjectStore, adapter: Manifest) -> RunSpec:
    """The spec that the run wrote, if it is still the one that the manifest names."""
    text = _read_run_file(store, adapter, SPEC)
    if hashlib.sha256(text.encode()).hexdigest() != adapter.spec_sha256:
        problem = f"the spec of run {adapter.run} was changed since"
        raise InputError([Fault(adapter.label, problem, "Find the spec of the manifest's digest.")])
    return parse_spec(text, SPEC)


def load_recorded_federation(store: ObjectStore, adapter: Manifest) -> FederatedSpec:
    """The federation that the run wrote, if it is still the one of its spec and its manifest."""
    spec = load_recorded_spec(store, adapter)
    text = _read_run_file(store, adapter, FEDERATION_FILE)
    federation = require_kind(parse_spec(text, FEDERATION_FILE), FederatedSpec)
    section = federation.section.model_dump(mode="json", exclude_none=True)
    recorded_section = {
        key: value for key, value in (adapter.federation or {}).items() if value is not None
    }
    if (federation.training, section) != (spec, recorded_section):
        problem = f"the federation of run {adapter.run} was changed since"
        raise InputError([Fault(adapter.label, problem, "Find what its manifest tells.")])
    return federation


def _read_run_file(store: ObjectStore, adapter: Manifest, file_name: str) -> str:
    try:
        return RunStore(store, adapter.run).read_text(file_name)
    except NotInStore as error:
        problem = f"the papers of run {adapter.run} are not in the store"
        raise InputError([Fault(adapter.label, problem, "Keep runs/ beside adapters/.")]) from error
