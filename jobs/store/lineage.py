"""Where an adapter comes from: its parents, back to the first."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import InputError, NotFound
from jobs.store.listing import resolve, split_name
from jobs.store.manifest import BadManifest, Manifest
from jobs.store.objects import ObjectStore

LONGEST = 100


@dataclass(frozen=True)
class Ancestor:
    """A parent as its child names it; the manifest where it is still there to be read."""

    label: str
    manifest: Manifest | None
    why: str = ""
    """What keeps it from being read."""


def ancestors(store: ObjectStore, manifest: Manifest) -> list[Ancestor]:
    """The parents, the nearest first. Ends at what can't be read; a circle ends it too."""
    found, seen = list[Ancestor](), {manifest.label}
    child = manifest
    while child.parent is not None and len(found) < LONGEST:
        ancestor = _look(store, child.parent, seen)
        found.append(ancestor)
        if ancestor.manifest is None:
            break
        child = ancestor.manifest
        seen.add(child.label)
    return found


def _look(store: ObjectStore, parent: str, seen: set[str]) -> Ancestor:
    if parent in seen:
        return Ancestor(parent, None, "a circle")
    try:
        # A parent without a version would mean another adapter after each promotion.
        if split_name(parent)[1] is None:
            return Ancestor(parent, None, "no version is named")
        return Ancestor(parent, resolve(store, parent))
    except InputError:
        return Ancestor(parent, None, "no adapter's name")
    except (NotFound, BadManifest):
        return Ancestor(parent, None, "not in the store")
