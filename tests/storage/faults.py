"""The invariants after a commit that met any fault."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import (
    commit,
    list_versions,
    pull,
    resolve_adapter,
    verify_adapter,
)
from jobs.store.base import ObjectStore
from tests.jobs.store.builders import make_adapter_folder, make_draft


@dataclass(frozen=True)
class Scene:
    """A name with one committed version, and the folder of the next version."""

    store: ObjectStore
    name: str
    first: Manifest
    before: Path
    after: Path

    def attempt(self, store: ObjectStore, number: int = 1) -> Manifest:
        """Commit the next version: the attempt that meets the fault, or its retry."""
        return commit(store, self.after, make_draft(name=self.name, run=self.name, attempt=number))


def make_scene(store: ObjectStore, name: str, folder: Path) -> Scene:
    """Create a scene with a unique name and unique bytes, so that it shares no blobs."""
    before = make_adapter_folder(folder / f"{name}-before", f"{name} before")
    after = make_adapter_folder(folder / f"{name}-after", f"{name} after")
    first = commit(store, before, make_draft(name=name, run=f"{name}-first"))
    return Scene(store, name, first, before, after)


def check_invariants(scene: Scene) -> None:
    """Check that the committed adapter is bit-equal, no partial one is listed, a retry works."""
    store = scene.store
    assert has_same_bytes(store, resolve_adapter(store, f"{scene.name}@v1"), scene.before)
    listed = _list_manifests(scene)
    for adapter in listed:
        assert verify_adapter(store, adapter) == []
        assert has_same_bytes(store, adapter, scene.before if adapter.version == 1 else scene.after)
    again = scene.attempt(store, number=2)
    mine = _list_manifests(scene)
    assert mine == [scene.first, again]
    assert listed in ([scene.first], mine)
    assert has_same_bytes(store, again, scene.after)


def _list_manifests(scene: Scene) -> list[Manifest]:
    """Return the manifests of this name: the store may hold a hundred other scenes."""
    versions = list_versions(scene.store, scene.name)
    return [resolve_adapter(scene.store, f"{scene.name}@v{version}") for version in versions]


def has_same_bytes(store: ObjectStore, adapter: Manifest, folder: Path) -> bool:
    """Return whether a pull gives the bytes of the folder."""
    with tempfile.TemporaryDirectory() as temporary:
        pulled = pull(store, adapter, Path(temporary) / "pulled")
        return all(
            (pulled / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir()
        )
