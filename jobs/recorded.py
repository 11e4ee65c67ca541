"""The spec that an adapter was made by, from its run's own papers."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from jobs.errors import Fault, InputError, NotFound
from jobs.spec import Spec
from jobs.spec_file import load_spec
from jobs.store.manifest import Manifest
from jobs.store.objects import ObjectStore
from jobs.store.runs import SPEC, RunStore


def recorded_spec(store: ObjectStore, adapter: Manifest) -> Spec:
    """The spec that the run wrote, if it is still the one that the manifest names."""
    try:
        text = RunStore(store, adapter.run).read_text(SPEC)
    except NotFound as gone:
        problem = f"the papers of run {adapter.run} are not in the store"
        raise InputError([Fault(adapter.label, problem, "Keep runs/ beside adapters/.")]) from gone
    if hashlib.sha256(text.encode()).hexdigest() != adapter.spec_sha256:
        problem = f"the spec of run {adapter.run} was changed since"
        raise InputError([Fault(adapter.label, problem, "Find the spec of the manifest's digest.")])
    with tempfile.TemporaryDirectory(prefix="slora-spec-") as made:
        path = Path(made) / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        return load_spec(path)
