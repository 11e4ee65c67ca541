"""Follow the parents of an adapter back to the first one."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import InputError, NotInStore, Untrusted
from jobs.store.adapters.listing import resolve_adapter, split_name
from jobs.store.adapters.manifest import BadManifest, Manifest
from jobs.store.base import ObjectStore

MAX_ANCESTORS = 100


@dataclass(frozen=True)
class Ancestor:
    """A parent by its name in the child, with its manifest if that can be read."""

    label: str
    manifest: Manifest | None
    problem: str = ""
    """Why the manifest cannot be read."""


def list_ancestors(store: ObjectStore, manifest: Manifest) -> list[Ancestor]:
    """Return the parents, the nearest first, up to one that cannot be read or repeats."""
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
        return Ancestor(parent, None, "cyclic")
    try:
        # Without a version the name would resolve to another adapter after each promotion.
        if split_name(parent)[1] is None:
            return Ancestor(parent, None, "the parent has no version")
        return Ancestor(parent, resolve_adapter(store, parent))
    except InputError:
        return Ancestor(parent, None, "the parent is not the name of an adapter")
    except Untrusted:
        return Ancestor(parent, None, "not signed by a trusted key")
    except (NotInStore, BadManifest):
        return Ancestor(parent, None, "not in the store")
