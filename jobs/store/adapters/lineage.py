"""Where an adapter comes from: its parents, back to the first."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import InputError, NotInStore
from jobs.store.adapters.listing import resolve_adapter, split_name
from jobs.store.adapters.manifest import BadManifest, Manifest
from jobs.store.base import ObjectStore

MAX_ANCESTORS = 100


@dataclass(frozen=True)
class Ancestor:
    """A parent as its child names it; the manifest where it is still there to be read."""

    label: str
    manifest: Manifest | None
    problem: str = ""
    """What keeps it from being read."""


def list_ancestors(store: ObjectStore, manifest: Manifest) -> list[Ancestor]:
    """The parents, the nearest first. Ends at what can't be read; a circle ends it too."""
    chain, visited = list[Ancestor](), {manifest.label}
    child = manifest
    while child.parent is not None and len(chain) < MAX_ANCESTORS:
        ancestor = _resolve_parent(store, child.parent, visited)
        chain.append(ancestor)
        if ancestor.manifest is None:
            break
        child = ancestor.manifest
        visited.add(child.label)
    return chain


def _resolve_parent(store: ObjectStore, parent: str, visited: set[str]) -> Ancestor:
    if parent in visited:
        return Ancestor(parent, None, "a circle")
    try:
        # A parent without a version would mean another adapter after each promotion.
        if split_name(parent)[1] is None:
            return Ancestor(parent, None, "no version is named")
        return Ancestor(parent, resolve_adapter(store, parent))
    except InputError:
        return Ancestor(parent, None, "no adapter's name")
    except (NotInStore, BadManifest):
        return Ancestor(parent, None, "not in the store")
