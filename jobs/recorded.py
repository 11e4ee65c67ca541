"""The spec, or the whole federation, that an adapter was made by, from its run's own papers."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jobs.errors import Fault, InputError, NotFound
from jobs.federate.door import Federated, load_federated
from jobs.federate.papers import FEDERATION
from jobs.spec import Spec
from jobs.spec_file import load_spec
from jobs.store.manifest import Manifest
from jobs.store.objects import ObjectStore
from jobs.store.runs import SPEC, RunStore

Loaded = TypeVar("Loaded")


def recorded_spec(store: ObjectStore, adapter: Manifest) -> Spec:
    """The spec that the run wrote, if it is still the one that the manifest names."""
    text = _paper(store, adapter, SPEC)
    if hashlib.sha256(text.encode()).hexdigest() != adapter.spec_sha256:
        problem = f"the spec of run {adapter.run} was changed since"
        raise InputError([Fault(adapter.label, problem, "Find the spec of the manifest's digest.")])
    return _loaded(text, load_spec)


def recorded_federation(store: ObjectStore, adapter: Manifest) -> Federated:
    """The federation that the run wrote, if it is still the one of its spec and its manifest."""
    spec = recorded_spec(store, adapter)
    found = _loaded(_paper(store, adapter, FEDERATION), load_federated)
    section = found.section.model_dump(mode="json", exclude_none=True)
    told = {key: value for key, value in (adapter.federation or {}).items() if value is not None}
    if (found.spec, section) != (spec, told):
        problem = f"the federation of run {adapter.run} was changed since"
        raise InputError([Fault(adapter.label, problem, "Find what its manifest tells.")])
    return found


def _paper(store: ObjectStore, adapter: Manifest, part: str) -> str:
    try:
        return RunStore(store, adapter.run).read_text(part)
    except NotFound as gone:
        problem = f"the papers of run {adapter.run} are not in the store"
        raise InputError([Fault(adapter.label, problem, "Keep runs/ beside adapters/.")]) from gone


def _loaded(text: str, load: Callable[[Path], Loaded]) -> Loaded:
    with tempfile.TemporaryDirectory(prefix="slora-spec-") as made:
        path = Path(made) / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path)
